//! Small random models through every kind of file; in `wrong` the files are made wrong in every way that is known.

use std::fs;

use candle_core::quantized::gguf_file::Value as Meta;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use serde_json::json;

use super::super::made::{Made, logits, small, tensor, write_gguf};
use super::super::spec::RopeScaling;
use super::*;

mod smollm;
mod wrong;

const TOKENS: [u32; 9] = [261, 104, 101, 258, 32, 200, 262, 10, 7];

fn opened(model: &Path) -> Loaded {
    load(&wanted(model)).unwrap()
}

fn wanted(model: &Path) -> Wanted<'_> {
    Wanted {
        model,
        adapter: None,
        tokenizer: None,
        thinking: false,
    }
}

fn refusal(model: &Path) -> String {
    load(&wanted(model)).err().unwrap().to_string()
}

/// Llama and Qwen3, tied and not, with several layouts of heads.
fn layouts() -> Vec<Spec> {
    let llama = |heads, kv_heads, head_dim, tied| Spec {
        heads,
        kv_heads,
        head_dim,
        hidden: heads * head_dim,
        tied,
        ..small()
    };
    let qwen = |heads, kv_heads, head_dim, tied| Spec {
        heads,
        kv_heads,
        head_dim,
        tied,
        head_norms: true,
        ..small()
    };
    vec![
        llama(4, 2, 8, true),
        llama(3, 1, 16, false),
        llama(4, 4, 8, false),
        qwen(4, 2, 8, true),
        qwen(2, 1, 32, false),
        qwen(6, 3, 4, false),
    ]
}

fn far(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let apart = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    apart.fold(0.0, f32::max)
}

#[test]
fn a_folder_its_shards_and_a_gguf_file_of_the_same_weights_give_the_same_logits() {
    for (seed, spec) in (0..).zip(layouts()) {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let mut made = Made::new(spec.clone(), seed);
        let truth = logits(&spec, &mut made.tensors.clone(), &TOKENS);
        made.folder(&at("one"), 1, DType::F32);
        made.folder(&at("shards"), 3, DType::F32);
        made.gguf(&at("f32.gguf"), GgmlDType::F32);
        for name in ["one", "shards", "f32.gguf"] {
            let mut loaded = opened(&at(name));
            assert_eq!(loaded.spec, spec, "{name}");
            let found = logits(&loaded.spec, loaded.tensors.as_mut(), &TOKENS);
            assert!(
                far(&truth, &found) < 1e-5,
                "{name} of {spec:?}: {}",
                far(&truth, &found)
            );
        }
        // Another weight gives other logits, so the comparison can fail.
        let (name, shape) = spec.weights().swap_remove(4);
        made.tensors
            .insert(name, tensor(&mut fastrand::Rng::with_seed(99), &shape, 0.2));
        assert!(far(&truth, &logits(&spec, &mut made.tensors, &TOKENS)) > 1e-3);
    }
}

#[test]
fn every_number_format_is_read_as_near_as_it_keeps_numbers() {
    let spec = Spec {
        hidden: 256,
        heads: 8,
        kv_heads: 4,
        head_dim: 32,
        intermediate: 512,
        layers: 1,
        ..small()
    };
    let made = Made::new(spec.clone(), 5);
    let dir = tempfile::tempdir().unwrap();
    let apart = |model: &Path| {
        let mut loaded = opened(model);
        let mut worst = 0f32;
        for (name, shape) in spec.weights().iter().filter(|(_, shape)| shape.len() == 2) {
            let found: Vec<f32> = loaded
                .tensors
                .take(name, shape)
                .unwrap()
                .flatten_all()
                .unwrap()
                .to_vec1()
                .unwrap();
            let truth: Vec<f32> = made.tensors[name].flatten_all().unwrap().to_vec1().unwrap();
            worst = worst.max(far(&truth, &found));
        }
        worst
    };
    // The weights go up to 0.2.
    for (kind, most) in [
        (GgmlDType::F32, 1e-9),
        (GgmlDType::F16, 1e-4),
        (GgmlDType::BF16, 1e-3),
        (GgmlDType::Q8_0, 1e-3),
        (GgmlDType::Q6K, 0.008),
        (GgmlDType::Q5K, 0.016),
        (GgmlDType::Q4_0, 0.03),
        (GgmlDType::Q4_1, 0.03),
        (GgmlDType::Q4K, 0.03),
    ] {
        let path = dir.path().join("model.gguf");
        made.gguf(&path, kind);
        let found = apart(&path);
        assert!(found <= most, "{kind:?}: {found}");
    }
    for (dtype, most) in [(DType::F32, 1e-9), (DType::F16, 1e-4), (DType::BF16, 1e-3)] {
        let path = dir.path().join(format!("{dtype:?}"));
        made.folder(&path, 2, dtype);
        let found = apart(&path);
        assert!(found <= most, "{dtype:?}: {found}");
    }
}

#[test]
fn llama_3s_scaling_of_rotary_positions_is_the_same_from_config_and_from_gguf() {
    for factor in [8.0, 32.0] {
        let scaling = RopeScaling {
            factor,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192,
        };
        let spec = Spec {
            head_dim: 64,
            heads: 2,
            kv_heads: 1,
            hidden: 128,
            rope_theta: 500_000.0,
            rope_scaling: Some(scaling),
            ..small()
        };
        let made = Made::new(spec.clone(), 11);
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        made.folder(&at("folder"), 1, DType::F32);
        made.gguf(&at("gguf"), GgmlDType::F32);
        assert_eq!(opened(&at("folder")).spec, spec);
        assert_eq!(opened(&at("gguf")).spec, spec);
        // Frequencies that no Llama 3 has.
        let mut tensors = made.gguf_tensors(GgmlDType::F32);
        let odd = Tensor::new(vec![3f32; 32], &Device::Cpu).unwrap();
        tensors.insert(
            "rope_freqs.weight".to_owned(),
            QTensor::quantize(&odd, GgmlDType::F32).unwrap(),
        );
        write_gguf(&at("odd.gguf"), &made.metadata(), &tensors);
        let error = refusal(&at("odd.gguf"));
        assert!(
            error.contains("odd.gguf") && error.contains("rope_freqs.weight"),
            "{error}"
        );
    }
}

#[test]
fn chat_and_stops_are_the_same_from_a_folder_and_from_gguf() {
    let made = Made::new(small(), 1);
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    made.folder(&at("folder"), 1, DType::F32);
    made.gguf(&at("gguf"), GgmlDType::F32);
    let (folder, gguf) = (opened(&at("folder")).chat, opened(&at("gguf")).chat);
    let text = "the  thing\u{301} isn't 1234 …\n\n <|im_end|> in<think>";
    assert_eq!(
        folder.encode("be brief", text).unwrap(),
        gguf.encode("be brief", text).unwrap()
    );
    assert_eq!(folder.stops(), [260, 262]);
    assert_eq!(gguf.stops(), [260, 262]);
    // tokenizer.json asks for a cut at 4 tokens.
    assert!(folder.count(text) > 20);
}

#[test]
fn a_tokenizer_that_is_named_takes_the_place_of_the_models_own() {
    let made = Made::new(small(), 1);
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    made.folder(&at("folder"), 1, DType::F32);
    let bare = made
        .metadata()
        .into_iter()
        .filter(|(key, _)| !key.starts_with("tokenizer."));
    write_gguf(
        &at("bare.gguf"),
        &bare.collect(),
        &made.gguf_tensors(GgmlDType::F32),
    );
    let error = refusal(&at("bare.gguf"));
    assert!(
        error.contains("bare.gguf") && error.contains("tokenizer.ggml.model"),
        "{error}"
    );
    let tokenizer = at("folder").join("tokenizer.json");
    let named = |model: &Path, tokenizer: &Path| {
        load(&Wanted {
            tokenizer: Some(tokenizer),
            ..wanted(model)
        })
    };
    let loaded = named(&at("bare.gguf"), &tokenizer).unwrap();
    assert_eq!(
        loaded.chat.encode("s", "u").unwrap(),
        opened(&at("folder")).chat.encode("s", "u").unwrap()
    );
    assert!(loaded.files.contains(&tokenizer));
    // A folder without one.
    let elsewhere = at("tokenizer.json");
    fs::rename(&tokenizer, &elsewhere).unwrap();
    let error = refusal(&at("folder"));
    assert!(
        error.contains("tokenizer.json") && error.contains("engine.tokenizer"),
        "{error}"
    );
    assert!(named(&at("folder"), &elsewhere).is_ok());
    // One of another model.
    let mut other = super::super::made::tokenizer();
    other["model"]["vocab"]["zzz"] = json!(4000);
    fs::write(&elsewhere, other.to_string()).unwrap();
    let error = named(&at("folder"), &elsewhere).err().unwrap().to_string();
    assert!(
        error.contains("zzz") && error.contains("another model's"),
        "{error}"
    );
}

#[test]
fn the_template_is_found_in_its_own_file_and_among_several() {
    let made = Made::new(small(), 1);
    let dir = tempfile::tempdir().unwrap();
    made.folder(dir.path(), 1, DType::F32);
    let own = opened(dir.path()).chat.encode("s", "u").unwrap();
    let settings = dir.path().join("tokenizer_config.json");
    let several = json!({"chat_template": [{"name": "tools", "template": "no"}, {"name": "default", "template": super::super::made::TEMPLATE}]});
    fs::write(&settings, several.to_string()).unwrap();
    assert_eq!(opened(dir.path()).chat.encode("s", "u").unwrap(), own);
    fs::write(
        dir.path().join("chat_template.jinja"),
        "{% for m in messages %}{{ m.content }}{% endfor %}",
    )
    .unwrap();
    let loaded = opened(dir.path());
    assert_eq!(loaded.chat.encode("s", "u").unwrap(), [115, 117]);
    assert!(
        loaded
            .files
            .iter()
            .any(|f| f.ends_with("chat_template.jinja"))
    );
    // More of it than memory, and nothing on the disk.
    let endless = fs::File::create(dir.path().join("chat_template.jinja")).unwrap();
    endless.set_len(1 << 40).unwrap();
    let error = refusal(dir.path());
    assert!(
        error.contains("chat_template.jinja") && error.contains("is larger than"),
        "{error}"
    );
    fs::remove_file(dir.path().join("chat_template.jinja")).unwrap();
    fs::remove_file(&settings).unwrap();
    let error = refusal(dir.path());
    assert!(error.contains("no chat template"), "{error}");
}

#[test]
fn one_safetensors_file_is_taken_with_what_lies_beside_it() {
    let made = Made::new(small(), 1);
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    made.folder(&at("one"), 1, DType::F32);
    let file = at("one").join("model.safetensors");
    let logits_of = |model: &Path| {
        let mut loaded = opened(model);
        logits(&loaded.spec, loaded.tensors.as_mut(), &TOKENS)
    };
    let truth = logits_of(&at("one"));
    assert_eq!(logits_of(&file), truth);
    assert_eq!(opened(&file).files, opened(&at("one")).files);
    // Under any name; then its folder has no model.safetensors.
    let other = at("one").join("mine.safetensors");
    fs::rename(&file, &other).unwrap();
    assert_eq!(logits_of(&other), truth);
    assert!(opened(&other).files.contains(&other));
    fs::remove_file(at("one").join("config.json")).unwrap();
    let error = refusal(&other);
    assert!(error.contains("config.json"), "{error}");
    // One of several is not the model.
    made.folder(&at("shards"), 2, DType::F32);
    let error = refusal(&at("shards").join("model-00001-of-00002.safetensors"));
    assert!(
        error.contains("model-00001-of-00002") && error.contains("give their folder"),
        "{error}"
    );
}
