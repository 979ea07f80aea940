//! A short run of what the fuzz targets do: sound files, changed at random. Nothing may panic, and the memory that is taken stays in
//! proportion to the file.

use std::time::{Duration, Instant};

use candle_core::DType;
use candle_core::quantized::GgmlDType;
use serde_json::json;

use super::super::made::{Made, TEMPLATE, small, tensor, tokenizer};
use super::super::measured::measured;
use super::*;

/// Buffers, tables and the like that do not depend on the file.
const ALLOWED: usize = 8 << 20;
/// So many are tried, however slow the machine is; more within the time.
const LEAST: u64 = 200;

/// Each reader's time; `LIMN_FUZZ_SECONDS` sets another.
fn time_each() -> Duration {
    let given = std::env::var("LIMN_FUZZ_SECONDS").ok();
    given.map_or(Duration::from_millis(1500), |seconds| {
        Duration::from_secs(seconds.parse().unwrap())
    })
}

fn two_in_one(first: &[u8], second: &[u8]) -> Vec<u8> {
    let length = u32::try_from(first.len()).unwrap();
    [&length.to_le_bytes(), first, second].concat()
}

/// Some bytes are others, some numbers are extreme, parts are cut out, doubled or moved.
fn changed(rng: &mut fastrand::Rng, sound: &[u8]) -> Vec<u8> {
    let mut bytes = sound.to_vec();
    for _ in 0..rng.usize(1..4) {
        if bytes.is_empty() {
            break;
        }
        // Headers are at the beginning, and there are most of the lies.
        let span = if rng.bool() {
            bytes.len()
        } else {
            bytes.len().min(4096)
        };
        let at = rng.usize(0..span);
        match rng.u8(0..7) {
            0 => bytes[at] ^= 1 << rng.u8(0..8),
            1 => bytes[at] = rng.u8(..),
            2 => {
                let extreme = [
                    0,
                    1,
                    255,
                    1 << 31,
                    u64::MAX,
                    u64::MAX >> 1,
                    1 << 40,
                    1 << 62,
                ][rng.usize(0..8)];
                let width = [2, 4, 8][rng.usize(0..3)].min(bytes.len() - at);
                bytes[at..at + width].copy_from_slice(&extreme.to_le_bytes()[..width]);
            }
            3 => bytes.truncate(at),
            4 => drop(bytes.drain(at..(at + rng.usize(1..64)).min(bytes.len()))),
            5 => {
                let part = bytes[at..(at + rng.usize(1..64)).min(bytes.len())].to_vec();
                let to = rng.usize(0..bytes.len());
                bytes.splice(to..to, part);
            }
            _ => {
                // A digit of JSON becomes a long number.
                let digit = bytes.iter().skip(at).position(u8::is_ascii_digit);
                if let Some(found) = digit {
                    let number = [
                        "-1",
                        "0",
                        "1e999",
                        "18446744073709551615",
                        "null",
                        "\"\"",
                        "[]",
                        "{}",
                    ][rng.usize(0..8)];
                    bytes.splice(at + found..=at + found, number.bytes());
                }
            }
        }
    }
    bytes
}

/// Runs until the time is up. What went wrong can be made again: the seed is in the message.
fn run(name: &str, sound: &[Vec<u8>], entry: fn(&[u8])) {
    // The sound ones first: they go all the way.
    for (i, bytes) in sound.iter().enumerate() {
        entry(bytes);
        // What a fuzzer begins with; fuzz/README.md has the command.
        if let Some(folder) = std::env::var_os("LIMN_FUZZ_SEEDS") {
            let folder = Path::new(&folder).join(name);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join(i.to_string()), bytes).unwrap();
        }
    }
    let (began, time) = (Instant::now(), time_each());
    for seed in 0u64.. {
        if seed >= LEAST && began.elapsed() >= time {
            eprintln!("{name}: {seed} changed files");
            break;
        }
        let mut rng = fastrand::Rng::with_seed(seed);
        let which = rng.usize(0..sound.len());
        let bytes = changed(&mut rng, &sound[which]);
        let (ended, peak) = measured(|| std::panic::catch_unwind(|| entry(&bytes)));
        assert!(ended.is_ok(), "{name}: seed {seed} panics");
        let most = ALLOWED + 64 * bytes.len();
        assert!(
            peak <= most,
            "{name}: seed {seed} takes {} bytes of memory for a file of {}",
            peak,
            bytes.len()
        );
    }
}

#[test]
fn no_gguf_file_makes_the_loader_panic_or_allocate_without_bound() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let sound: Vec<Vec<u8>> = [
        (false, GgmlDType::Q8_0),
        (true, GgmlDType::Q4_1),
        (false, GgmlDType::F16),
    ]
    .into_iter()
    .map(|(head_norms, kind)| {
        let spec = Spec {
            head_norms,
            layers: 1,
            ..small()
        };
        Made::new(spec, 1).gguf(&path, kind);
        std::fs::read(&path).unwrap()
    })
    .collect();
    run("gguf", &sound, gguf);
}

#[test]
fn no_safetensors_file_and_no_index_makes_the_loader_panic_or_allocate_without_bound() {
    let dir = tempfile::tempdir().unwrap();
    Made::new(small(), 1).folder(dir.path(), 2, DType::BF16);
    let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
    run(
        "safetensors",
        &[read("model-00001-of-00002.safetensors")],
        safetensors,
    );
    run("index", &[read("model.safetensors.index.json")], index);
}

#[test]
fn no_adapter_makes_the_loader_panic_or_allocate_without_bound() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = fastrand::Rng::with_seed(1);
    let [a, b] = [[4, 32], [32, 4]].map(|shape| tensor(&mut rng, &shape, 0.5));
    let name = |which: &str| {
        format!("base_model.model.model.layers.0.self_attn.q_proj.lora_{which}.weight")
    };
    let tensors = std::collections::HashMap::from([(name("A"), a), (name("B"), b)]);
    let path = dir.path().join("adapter_model.safetensors");
    candle_core::safetensors::save(&tensors, &path).unwrap();
    let config = json!({"peft_type": "LORA", "r": 8, "lora_alpha": 8, "rank_pattern": {"self_attn.(q|k)_proj": 4}, "alpha_pattern": {}, "bias": "none"});
    run(
        "adapter",
        &[two_in_one(
            config.to_string().as_bytes(),
            &std::fs::read(&path).unwrap(),
        )],
        adapter,
    );
}

#[test]
fn no_config_makes_the_loader_panic_or_allocate_without_bound() {
    let qwen = Spec {
        head_norms: true,
        ..small()
    };
    let sound = [small(), qwen].map(|spec| Made::new(spec, 1).config().to_string().into_bytes());
    run("config", &sound, config);
}

#[test]
fn no_tokenizer_or_template_makes_the_loader_panic_or_allocate_without_bound() {
    let mut like_llama_2 = tokenizer();
    like_llama_2["normalizer"] = json!({"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]});
    like_llama_2["pre_tokenizer"] =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true});
    like_llama_2["decoder"] = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
    let doubling = r#"{% set ns = namespace(s="aaaaaaaa") %}{% for i in range(50) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}"#;
    let calling = "{% macro m(x, y='d') %}{{ x | trim ~ y.split('d')[-1] }}{% endmacro %}{% for m in messages[::-1] if m.role in ['system', 'user'] %}{{ loop.index0 // 2 }}{{ m(m['content']) }}{% endfor %}";
    let sound = [
        (tokenizer(), TEMPLATE),
        (like_llama_2, calling),
        (tokenizer(), doubling),
    ]
    .map(|(tokenizer, template)| two_in_one(tokenizer.to_string().as_bytes(), template.as_bytes()));
    run("chat", &sound, chat);
}
