//! Adapters made here, compared with sums done by hand.

use std::collections::HashMap;
use std::fs;

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device};
use serde_json::{Value, json};

use super::super::super::made::{Made, small, tensor};
use super::super::{Wanted, load};
use super::*;

type Tensors = HashMap<String, Tensor>;

/// An adapter for those modules, each with its rank.
fn adapter(modules: &[(&str, usize)], seed: u64) -> Tensors {
    let mut rng = fastrand::Rng::with_seed(seed);
    let shapes: BTreeMap<String, Vec<usize>> = small().weights().into_iter().collect();
    let mut all = Tensors::new();
    for (module, rank) in modules {
        let target = format!("{module}.weight");
        let shape = &shapes[&target];
        let [a, b] = matrices(&target);
        all.insert(a, tensor(&mut rng, &[*rank, shape[1]], 0.5));
        all.insert(b, tensor(&mut rng, &[shape[0], *rank], 0.5));
    }
    all
}

fn write(folder: &Path, config: &Value, tensors: &Tensors) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    candle_core::safetensors::save(tensors, folder.join("adapter_model.safetensors")).unwrap();
}

fn rows(tensor: &Tensor) -> Vec<Vec<f32>> {
    tensor.to_dtype(DType::F32).unwrap().to_vec2().unwrap()
}

/// `W + factor * B A` in a plain loop.
fn by_hand(weight: &Tensor, adapter: &Tensors, module: &str, factor: f64) -> Vec<Vec<f32>> {
    let [a, b] = matrices(&format!("{module}.weight")).map(|name| rows(&adapter[&name]));
    let mut all = rows(weight);
    for (row, b) in all.iter_mut().zip(&b) {
        for (j, w) in row.iter_mut().enumerate() {
            let dot: f64 = b
                .iter()
                .zip(&a)
                .map(|(b, a)| f64::from(*b) * f64::from(a[j]))
                .sum();
            *w = (f64::from(*w) + factor * dot) as f32;
        }
    }
    all
}

const Q: &str = "model.layers.0.self_attn.q_proj";
const K: &str = "model.layers.1.self_attn.k_proj";
const DOWN: &str = "model.layers.1.mlp.down_proj";

#[test]
fn merged_weights_are_those_computed_by_hand_from_a_folder_and_from_gguf() {
    let made = Made::new(small(), 1);
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    made.folder(&at("model"), 1, DType::F32);
    made.gguf(&at("model.gguf"), GgmlDType::F32);
    let tensors = adapter(&[(Q, 4), (K, 2), (DOWN, 3)], 2);
    let mut config = json!({
        "peft_type": "LORA", "r": 4, "lora_alpha": 8, "rank_pattern": {"k_proj": 2, "layers.1.mlp.down_proj": 3},
        "alpha_pattern": {"self_attn.k_proj": 5},
    });
    for root in [false, true] {
        config["use_rslora"] = json!(root);
        write(&at("adapter"), &config, &tensors);
        for model in ["model", "model.gguf"] {
            let mut loaded = load(&Wanted {
                model: &at(model),
                adapter: Some(&at("adapter")),
                tokenizer: None,
                thinking: false,
            })
            .unwrap();
            assert!(
                loaded
                    .files
                    .iter()
                    .filter(|f| f.starts_with(at("adapter")))
                    .count()
                    == 2
            );
            let divisor = |rank: f64| if root { rank.sqrt() } else { rank };
            let factors = [
                (Q, 8.0 / divisor(4.0)),
                (K, 5.0 / divisor(2.0)),
                (DOWN, 8.0 / divisor(3.0)),
            ];
            for (name, shape) in small().weights() {
                let found = loaded.tensors.take(&name, &shape).unwrap();
                let own = &made.tensors[&name];
                let Some((module, factor)) =
                    factors.iter().find(|(m, _)| name == format!("{m}.weight"))
                else {
                    let same = found.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                    assert_eq!(
                        same,
                        own.flatten_all().unwrap().to_vec1::<f32>().unwrap(),
                        "{name}"
                    );
                    continue;
                };
                let wanted = by_hand(own, &tensors, module, *factor);
                for (found, wanted) in rows(&found).iter().flatten().zip(wanted.iter().flatten()) {
                    assert!(
                        (found - wanted).abs() < 1e-5,
                        "{name} of {model}: {found} {wanted}"
                    );
                }
            }
        }
    }
}

#[test]
fn an_adapter_that_does_not_fit_the_model_is_refused_by_tensor() {
    let made = Made::new(small(), 1);
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    made.folder(&at("model"), 1, DType::F32);
    let refusal = |config: &Value, tensors: &Tensors| {
        write(&at("adapter"), config, tensors);
        let error = load(&Wanted {
            model: &at("model"),
            adapter: Some(&at("adapter")),
            tokenizer: None,
            thinking: false,
        });
        error.err().unwrap().to_string()
    };
    let plain = json!({"r": 4, "lora_alpha": 8});
    let sound = adapter(&[(Q, 4)], 3);
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let [a, b] = matrices(&format!("{Q}.weight"));
    let with = |name: &str, tensor: Tensor| {
        let mut all = sound.clone();
        all.insert(name.to_owned(), tensor);
        all
    };
    let mut half = sound.clone();
    half.remove(&b);
    for (tensors, words) in [
        (half, [b.as_str(), "is missing"]),
        (with(&a, zeros(&[3, 32])), [a.as_str(), "[4, 32] is wanted"]),
        (with(&a, zeros(&[4, 31])), [a.as_str(), "[4, 31]"]),
        (with(&a, zeros(&[32, 4])), [a.as_str(), "[32, 4]"]),
        (with(&b, zeros(&[31, 4])), [b.as_str(), "[31, 4]"]),
        (with(&b, zeros(&[32, 5])), [b.as_str(), "rank 4"]),
        (
            with(
                "base_model.model.model.layers.9.mlp.up_proj.lora_A.weight",
                zeros(&[4, 32]),
            ),
            ["layers.9", "does not have"],
        ),
        (
            with("base_model.model.model.norm.lora_A.weight", zeros(&[4, 32])),
            ["norm", "no matrix"],
        ),
        (
            with("base_model.model.lm_head.lora_A.weight", zeros(&[4, 32])),
            ["lm_head", "shares with its embedding"],
        ),
        (
            with(
                "base_model.model.model.embed_tokens.lora_embedding_A",
                zeros(&[4, 300]),
            ),
            ["lora_embedding_A", "no part"],
        ),
        (
            with(
                &a.replace("lora_A.weight", "lora_magnitude_vector"),
                zeros(&[32]),
            ),
            ["lora_magnitude_vector", "no part"],
        ),
        (Tensors::new(), ["adapter_model.safetensors", "empty"]),
    ] {
        let error = refusal(&plain, &tensors);
        assert!(
            error.contains("adapter_model.safetensors") && words.iter().all(|w| error.contains(w)),
            "{error}"
        );
    }
    let other = json!({"r": 4, "lora_alpha": 8, "rank_pattern": {"q_proj": 8}});
    let error = refusal(&other, &sound);
    assert!(error.contains("rank 8"), "{error}");
    let error = refusal(&json!({"r": 0, "lora_alpha": 8}), &sound);
    assert!(
        error.contains("adapter_config.json") && error.contains("rank of r is 0"),
        "{error}"
    );
    write(&at("adapter"), &plain, &sound);
    fs::remove_file(at("adapter").join("adapter_model.safetensors")).unwrap();
    let error = load(&Wanted {
        model: &at("model"),
        adapter: Some(&at("adapter")),
        tokenizer: None,
        thinking: false,
    });
    assert!(
        error
            .err()
            .unwrap()
            .to_string()
            .contains("adapter_model.safetensors")
    );
}

#[test]
fn an_adapter_that_makes_weights_endless_is_named() {
    let made = Made::new(small(), 1);
    let dir = tempfile::tempdir().unwrap();
    made.folder(&dir.path().join("model"), 1, DType::F32);
    let config = json!({"r": 4, "lora_alpha": 1e38});
    let mut tensors = adapter(&[(Q, 4)], 3);
    let [a, _] = matrices(&format!("{Q}.weight"));
    let large = (&tensors[&a] * 1e4).unwrap();
    tensors.insert(a, large);
    write(&dir.path().join("adapter"), &config, &tensors);
    let mut loaded = load(&Wanted {
        model: &dir.path().join("model"),
        adapter: Some(&dir.path().join("adapter")),
        tokenizer: None,
        thinking: false,
    })
    .unwrap();
    let error = loaded
        .tensors
        .take(&format!("{Q}.weight"), &[32, 32])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("adapter_model.safetensors") && error.contains("no longer finite"),
        "{error}"
    );
}
