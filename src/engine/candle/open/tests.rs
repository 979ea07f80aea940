//! What a model may hold, by its configuration and the memory that there is.

use super::super::kernels::best;
use super::super::made::{Made, small};
use super::*;
use crate::engine::Bound;

const PLENTY: Memory = Memory {
    free: 1 << 40,
    most: 1 << 40,
};

fn f32_config() -> Config {
    Config {
        dtype: Dtype::F32,
        threads: Some(1),
        ..Config::default()
    }
}

fn limits_of(config: &Config, memory: Option<Memory>) -> Result<Limits, Error> {
    let spec = small();
    limits(
        config,
        &spec,
        spec.context,
        &Place::of(best(), config).unwrap(),
        memory,
    )
}

/// Bytes of a block and of the weights.
fn sizes() -> (usize, usize) {
    let place = Place::of(best(), &f32_config()).unwrap();
    (
        place.bytes_per_block(&small()),
        place.weight_bytes(&small()),
    )
}

#[test]
fn a_cache_of_given_bytes_has_the_whole_blocks_that_they_hold() {
    let (each, _) = sizes();
    let with = |bytes: usize| Config {
        cache_bytes: Some(bytes as u64),
        ..f32_config()
    };
    let blocks = |bytes| limits_of(&with(bytes), Some(PLENTY)).unwrap().blocks;
    assert_eq!(blocks(10 * each), 10);
    assert_eq!(blocks(11 * each - 1), 10);
    let error = limits_of(&with(each - 1), Some(PLENTY)).unwrap_err();
    let said = error.to_string();
    assert!(
        said.contains("engine.cache: there is no room for one block"),
        "{said}"
    );
    assert!(said.contains(&each.to_string()), "{said}");
}

#[test]
fn the_cache_takes_half_of_what_the_weights_leave_and_no_more_than_it_needs() {
    let (each, weights) = sizes();
    let config = f32_config();
    let blocks = |memory| limits_of(&config, memory).unwrap().blocks;
    // Sixteen requests of 512 positions.
    let wanted = 16 * 512 / 32;
    assert_eq!(blocks(None), wanted);
    assert_eq!(blocks(Some(PLENTY)), wanted);
    let free = |free| Memory { free, ..PLENTY };
    assert_eq!(blocks(Some(free(weights + 2 * 40 * each))), 40);
    // What is free is an estimate: one request is tried.
    assert_eq!(blocks(Some(free(weights))), small().context / 32);
    assert_eq!(blocks(Some(free(0))), small().context / 32);
}

#[test]
fn weights_that_no_memory_of_the_machine_can_hold_are_refused_by_name() {
    let (_, weights) = sizes();
    let most = |most| {
        let memory = Memory { free: most, most };
        limits_of(&f32_config(), Some(memory))
    };
    assert!(most(weights).is_ok());
    let said = most(weights - 1).unwrap_err().to_string();
    for part in ["engine.model", "engine.dtype", "f32", "cpu"] {
        assert!(said.contains(part), "{part} is not in: {said}");
    }
}

#[test]
fn a_cache_that_the_machine_cannot_hold_beside_the_weights_is_refused_before_it_fills() {
    let (each, weights) = sizes();
    let config = Config {
        cache_bytes: Some(8 * each as u64),
        ..f32_config()
    };
    let of = |most| limits_of(&config, Some(Memory { free: most, most }));
    assert_eq!(of(weights + 8 * each).unwrap().blocks, 8);
    let said = of(weights + 8 * each - 1).unwrap_err().to_string();
    assert!(said.contains("engine.cache: "), "{said}");
    assert!(said.contains("make it smaller"), "{said}");
}

#[test]
fn weights_take_the_bits_of_their_format() {
    let mut spec = small();
    spec.tied = false;
    let bytes = |dtype| {
        let config = Config {
            dtype,
            ..Config::default()
        };
        Place::of(best(), &config).unwrap().weight_bytes(&spec)
    };
    let numbers: usize = spec
        .weights()
        .iter()
        .map(|(_, shape)| shape.iter().product::<usize>())
        .sum();
    assert_eq!(bytes(Dtype::F32), numbers * 4);
    assert_eq!(bytes(Dtype::Bf16), numbers * 2);
    // Output, gate and up projections.
    let in_bytes = spec.layers * (32 * 32 + 2 * 64 * 32);
    assert_eq!(bytes(Dtype::Int8), numbers * 2 - in_bytes);
}

#[test]
fn the_number_format_is_the_devices_choice_unless_one_is_given() {
    let chosen = |path, dtype| {
        let config = Config {
            dtype,
            ..Config::default()
        };
        Place::of(path, &config)
            .map(|place| (place.dtype, place.format(), place.tensors()))
            .map_err(|e| e.to_string())
    };
    let auto = if best().is_some() {
        (Dtype::Int8, Format::Int8, DType::BF16)
    } else {
        (Dtype::F32, Format::F32, DType::F32)
    };
    assert_eq!(chosen(best(), Dtype::Auto), Ok(auto));
    let f32 = (Dtype::F32, Format::F32, DType::F32);
    let bf16 = (Dtype::Bf16, Format::Bf16, DType::BF16);
    for path in [best(), None] {
        assert_eq!(chosen(path, Dtype::F32), Ok(f32));
        assert_eq!(chosen(path, Dtype::Bf16), Ok(bf16));
    }
    // Candle has no such 8 bits.
    assert_eq!(chosen(None, Dtype::Auto), Ok(f32));
    let said = chosen(None, Dtype::Int8).unwrap_err();
    for part in ["engine.dtype: int8", "AVX2", "\"f32\"", "\"bf16\""] {
        assert!(said.contains(part), "{part} is not in: {said}");
    }
    let wrong = Config {
        device: Device::Cuda(0),
        dtype: Dtype::Int8,
        ..Config::default()
    };
    let said = Place::of(best(), &wrong).err().unwrap().to_string();
    assert!(said.contains("engine.dtype: int8"), "{said}");
}

#[test]
fn what_bounds_a_request_is_the_smaller_of_context_and_cache() {
    let (each, _) = sizes();
    let longest = |bytes: Option<usize>| {
        let config = Config {
            cache_bytes: bytes.map(|bytes| bytes as u64),
            ..f32_config()
        };
        limits_of(&config, Some(PLENTY)).unwrap().longest()
    };
    assert_eq!(longest(None), (128, Bound::Context));
    assert_eq!(longest(Some(4 * each)), (128, Bound::Context));
    assert_eq!(longest(Some(3 * each)), (96, Bound::Cache));
}

#[test]
fn a_cache_that_no_memory_can_hold_is_an_error_that_names_its_key() {
    let dir = tempfile::tempdir().unwrap();
    Made::new(small(), 1).folder(dir.path(), 1, DType::F32);
    for bytes in [1 << 55, u64::MAX] {
        let error = Candle::open(&Config {
            model: dir.path().to_owned(),
            cache_bytes: Some(bytes),
            ..f32_config()
        });
        let said = error.err().unwrap().to_string();
        assert!(said.contains("engine.cache"), "{said}");
        assert!(said.contains("cannot be had"), "{said}");
    }
}

#[test]
fn each_kind_of_what_computes_has_a_fingerprint_of_its_own() {
    let path = kernels::paths()[0];
    let of = |device, path, dtype| {
        let config = Config {
            device,
            ..Config::default()
        };
        let place = Place {
            device: candle_core::Device::Cpu,
            path,
            dtype,
        };
        fingerprint(&config, &place, &[]).unwrap()
    };
    let cpu = of(Device::Cpu, Some(path), Dtype::F32);
    let cuda = of(Device::Cuda(0), None, Dtype::F32);
    let candle = of(Device::Cpu, None, Dtype::F32);
    assert_ne!(cpu, cuda);
    assert_ne!(cpu, candle);
    assert_ne!(candle, cuda);
    assert_ne!(cpu, of(Device::Cpu, Some(path), Dtype::Bf16));
    assert_eq!(cuda, of(Device::Cuda(1), None, Dtype::F32));
    // Processors whose products round otherwise are told apart; those that differ in an exponential's last bits are not.
    for one in kernels::paths() {
        for other in kernels::paths() {
            for (dtype, same) in [
                (Dtype::F32, true),
                (Dtype::Bf16, one.rounds_to_bf16() == other.rounds_to_bf16()),
                (
                    Dtype::Int8,
                    (one.rounds_to_bf16(), one.int8_by_16())
                        == (other.rounds_to_bf16(), other.int8_by_16()),
                ),
            ] {
                let prints = [one, other].map(|path| of(Device::Cpu, Some(path), dtype));
                let names = (one.name(), other.name());
                assert_eq!(prints[0] == prints[1], same, "{names:?} {dtype:?}");
            }
        }
    }
}
