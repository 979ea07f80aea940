//! Files that are cut off, lie, or are of another model: each is named, and the place in it.

use std::collections::HashMap;

use super::*;

#[test]
fn tensors_that_are_missing_misshapen_or_unknown_are_named_with_their_file_and_shapes() {
    let name = "model.layers.1.mlp.up_proj.weight";
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    type Change = (&'static str, fn(&mut Made), [&'static str; 3]);
    let changes: [Change; 4] = [
        (
            "missing",
            |made| drop(made.tensors.remove("model.layers.1.mlp.up_proj.weight")),
            ["up", "is missing", "[64, 32]"],
        ),
        (
            "misshapen",
            |made| {
                let wrong = Tensor::zeros((63, 32), DType::F32, &Device::Cpu).unwrap();
                made.tensors
                    .insert("model.layers.1.mlp.up_proj.weight".to_owned(), wrong);
            },
            ["up", "[63, 32]", "[64, 32] is wanted"],
        ),
        (
            "turned",
            |made| {
                let wrong = Tensor::zeros((32, 64), DType::F32, &Device::Cpu).unwrap();
                made.tensors
                    .insert("model.layers.1.mlp.up_proj.weight".to_owned(), wrong);
            },
            ["up", "[32, 64]", "[64, 32] is wanted"],
        ),
        (
            "more",
            |made| {
                let more = Tensor::zeros(8, DType::F32, &Device::Cpu).unwrap();
                made.tensors
                    .insert("model.layers.0.self_attn.q_norm.weight".to_owned(), more);
            },
            ["q_norm", "[8]", "no part of a model"],
        ),
    ];
    for (what, change, words) in changes {
        let mut made = Made::new(small(), 2);
        change(&mut made);
        made.folder(&at(what), 1, DType::F32);
        made.folder(&at(&format!("{what}-shards")), 2, DType::F32);
        made.gguf(&at(&format!("{what}.gguf")), GgmlDType::F32);
        for (path, file) in [
            (what.to_owned(), "safetensors"),
            (format!("{what}-shards"), "safetensors"),
            (format!("{what}.gguf"), ".gguf"),
        ] {
            let error = refusal(&at(&path));
            assert!(
                error.contains(file) && words.iter().all(|w| error.contains(w)),
                "{path}: {error}"
            );
        }
    }
    // Biases are left out by no one.
    let mut made = Made::new(small(), 2);
    made.tensors.insert(
        "model.layers.0.self_attn.q_proj.bias".to_owned(),
        zeros(&[32]),
    );
    made.folder(&at("bias"), 1, DType::F32);
    let error = refusal(&at("bias"));
    assert!(
        error.contains("q_proj.bias") && error.contains("no part"),
        "{error}"
    );
    // Asking for another shape than was agreed on is an error too, not a panic.
    Made::new(small(), 2).folder(&at("sound"), 1, DType::F32);
    let mut loaded = opened(&at("sound"));
    assert!(loaded.tensors.has(name) && !loaded.tensors.has("lm_head.weight"));
    for (name, shape) in [(name, vec![64, 31]), ("lm_head.weight", vec![300, 32])] {
        let error = loaded.tensors.take(name, &shape).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
}

#[test]
fn a_head_that_is_the_embedding_may_be_kept_twice_and_old_tables_are_passed_over() {
    let mut made = Made::new(small(), 3);
    let truth = logits(&made.spec, &mut made.tensors.clone(), &TOKENS);
    made.tensors.insert(
        "lm_head.weight".to_owned(),
        made.tensors["model.embed_tokens.weight"].clone(),
    );
    let table = Tensor::zeros(4, DType::F32, &Device::Cpu).unwrap();
    made.tensors.insert(
        "model.layers.0.self_attn.rotary_emb.inv_freq".to_owned(),
        table,
    );
    let dir = tempfile::tempdir().unwrap();
    made.folder(dir.path(), 1, DType::F32);
    let mut loaded = opened(dir.path());
    assert_eq!(
        logits(&loaded.spec, loaded.tensors.as_mut(), &TOKENS),
        truth
    );
}

#[test]
fn numbers_that_are_not_finite_are_named() {
    let name = "model.layers.0.mlp.down_proj.weight";
    for bad in [f32::NAN, f32::INFINITY] {
        let mut made = Made::new(small(), 4);
        let mut numbers: Vec<f32> = made.tensors[name].flatten_all().unwrap().to_vec1().unwrap();
        numbers[77] = bad;
        made.tensors.insert(
            name.to_owned(),
            Tensor::from_vec(numbers, (32, 64), &Device::Cpu).unwrap(),
        );
        let dir = tempfile::tempdir().unwrap();
        made.folder(&dir.path().join("folder"), 1, DType::BF16);
        made.gguf(&dir.path().join("m.gguf"), GgmlDType::F16);
        for (model, own) in [("folder", name), ("m.gguf", "blk.0.ffn_down.weight")] {
            let error = opened(&dir.path().join(model))
                .tensors
                .take(name, &[32, 64])
                .unwrap_err()
                .to_string();
            assert!(
                error.contains(own) && error.contains("number 77") && error.contains("not finite"),
                "{error}"
            );
        }
    }
}

#[test]
fn a_safetensors_file_that_is_cut_off_or_lies_is_named() {
    let made = Made::new(small(), 6);
    let dir = tempfile::tempdir().unwrap();
    made.folder(dir.path(), 1, DType::F32);
    let file = dir.path().join("model.safetensors");
    let whole = fs::read(&file).unwrap();
    let header = u64::from_le_bytes(whole[..8].try_into().unwrap());
    let try_bytes = |bytes: &[u8]| {
        fs::write(&file, bytes).unwrap();
        let error = refusal(dir.path());
        assert!(error.contains("model.safetensors"), "{error}");
        error
    };
    for length in [0, 7, 8, 100, whole.len() - 1] {
        try_bytes(&whole[..length]);
    }
    let longer = [whole.as_slice(), b"x"].concat();
    assert!(try_bytes(&longer).contains("the file holds"));
    let mut lies = whole.clone();
    lies[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(try_bytes(&lies).contains("18446744073709551615"));
    let with_header = |text: &str| {
        let padded = format!("{text:<width$}", width = usize::try_from(header).unwrap());
        [
            &header.to_le_bytes(),
            padded.as_bytes(),
            &whole[8 + usize::try_from(header).unwrap()..],
        ]
        .concat()
    };
    for (text, word) in [
        (
            r#"{"x":{"dtype":"F32","shape":[4],"data_offsets":[4,20]}}"#,
            "offset",
        ),
        (
            r#"{"x":{"dtype":"F32","shape":[4],"data_offsets":[0,20]}}"#,
            "offset",
        ),
        (
            r#"{"x":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"y":{"dtype":"F32","shape":[4],"data_offsets":[8,24]}}"#,
            "offset",
        ),
        (
            r#"{"x":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,16]}}"#,
            "overflow",
        ),
        (
            r#"{"x":{"dtype":"F32","shape":[1,-1],"data_offsets":[0,4]}}"#,
            "header",
        ),
        ("[]", "header"),
        ("not json", "header"),
    ] {
        let error = try_bytes(&with_header(text)).to_lowercase();
        assert!(
            error.contains(word) || error.contains("invalid"),
            "{text}: {error}"
        );
    }
    let ids = HashMap::from([(
        "model.norm.weight".to_owned(),
        Tensor::new(&[1u8, 2], &Device::Cpu).unwrap(),
    )]);
    candle_core::safetensors::save(&ids, &file).unwrap();
    let error = refusal(dir.path());
    assert!(
        error.contains("model.norm.weight") && error.contains("U8"),
        "{error}"
    );
}

#[test]
fn an_index_that_leaves_the_folder_or_is_wrong_is_named() {
    let made = Made::new(small(), 7);
    let dir = tempfile::tempdir().unwrap();
    made.folder(dir.path(), 2, DType::F32);
    let file = dir.path().join("model.safetensors.index.json");
    let whole: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let tensor = "model.norm.weight";
    for (shard, word) in [
        ("../model.safetensors", "is no name"),
        ("/etc/passwd", "is no name"),
        ("..", "is no name"),
        ("a\\b.safetensors", "is no name"),
        ("config.json", "is no name"),
        ("model-00003-of-00002.safetensors", "No such file"),
    ] {
        let mut index = whole.clone();
        index["weight_map"][tensor] = json!(shard);
        fs::write(&file, index.to_string()).unwrap();
        let error = refusal(dir.path());
        assert!(error.contains(word), "{shard}: {error}");
    }
    let mut index = whole.clone();
    let first = whole["weight_map"]["model.embed_tokens.weight"].clone();
    let other = whole["weight_map"]
        .as_object()
        .unwrap()
        .iter()
        .find(|(_, shard)| **shard != first)
        .unwrap();
    index["weight_map"][other.0] = first;
    fs::write(&file, index.to_string()).unwrap();
    let error = refusal(dir.path());
    assert!(
        error.contains(other.0) && error.contains("should be"),
        "{error}"
    );
    for text in [
        "{}",
        "[]",
        "{\"weight_map\": 3}",
        "{\"weight_map\": {\"x\": 3}}",
        "{",
    ] {
        fs::write(&file, text).unwrap();
        let error = refusal(dir.path());
        assert!(error.contains("index.json"), "{text}: {error}");
    }
}

#[test]
fn a_tensor_in_two_shards_is_named() {
    let made = Made::new(small(), 8);
    let dir = tempfile::tempdir().unwrap();
    made.folder(dir.path(), 2, DType::F32);
    let second = dir.path().join("model-00002-of-00002.safetensors");
    let mut tensors = candle_core::safetensors::load(&second, &Device::Cpu).unwrap();
    let name = "model.embed_tokens.weight";
    tensors.insert(name.to_owned(), made.tensors[name].clone());
    candle_core::safetensors::save(&tensors, &second).unwrap();
    let error = refusal(dir.path());
    assert!(error.contains(name) && error.contains("as well"), "{error}");
}

#[test]
fn a_gguf_file_of_another_kind_is_refused_by_the_key() {
    let made = Made::new(small(), 9);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kind.gguf");
    let tensors = made.gguf_tensors(GgmlDType::F32);
    let text = |t: &str| Meta::String(t.to_owned());
    for (key, value, word) in [
        ("general.architecture", text("gemma3"), "gemma3"),
        ("split.count", Meta::U16(3), "one of 3 parts"),
        ("llama.expert_count", Meta::U32(8), "expert_count"),
        (
            "llama.attention.sliding_window",
            Meta::U32(4096),
            "sliding_window",
        ),
        ("llama.rope.scaling.type", text("yarn"), "yarn"),
        (
            "llama.rope.dimension_count",
            Meta::U32(4),
            "dimension_count",
        ),
        (
            "llama.attention.value_length",
            Meta::U32(16),
            "value_length",
        ),
        ("llama.attention.head_count", Meta::U32(0), "heads"),
        ("llama.attention.head_count", Meta::I32(-4), "head_count"),
        (
            "llama.attention.head_count",
            Meta::Array(vec![Meta::U32(4); 2]),
            "head_count",
        ),
        (
            "llama.attention.head_count_kv",
            Meta::U32(3),
            "cannot share",
        ),
        ("llama.block_count", Meta::U64(u64::MAX), "layers"),
        ("llama.block_count", Meta::U32(3), "blk.2."),
        ("llama.context_length", text("long"), "context_length"),
        ("llama.rope.freq_base", Meta::F32(f32::NAN), "rotary base"),
        (
            "llama.attention.layer_norm_rms_epsilon",
            Meta::F32(0.0),
            "epsilon",
        ),
        ("tokenizer.ggml.model", text("llama"), "engine.tokenizer"),
        ("tokenizer.ggml.pre", text("gpt-4o"), "gpt-4o"),
        ("tokenizer.ggml.tokens", text("a b c"), "tokens"),
        (
            "tokenizer.ggml.tokens",
            Meta::Array(vec![text("a"); 301]),
            "301",
        ),
        (
            "tokenizer.ggml.merges",
            Meta::Array(vec![text("a nowhere")]),
            "nowhere",
        ),
        (
            "tokenizer.ggml.merges",
            Meta::Array(vec![Meta::U8(1)]),
            "merges",
        ),
        (
            "tokenizer.ggml.token_type",
            Meta::Array(vec![Meta::I32(1)]),
            "token_type",
        ),
        (
            "tokenizer.ggml.bos_token_id",
            Meta::U32(100_000),
            "bos_token_id",
        ),
        ("tokenizer.chat_template", text("{% for %}"), "syntax error"),
        (
            "tokenizer.chat_template",
            text("{{ messages[1].content }}"),
            "leaves the system message out",
        ),
        (
            "tokenizer.chat_template",
            text("{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}"),
            "computes more",
        ),
        ("general.alignment", Meta::U32(0), "general.alignment"),
        ("general.alignment", Meta::U32(24), "general.alignment"),
    ] {
        let mut metadata = made.metadata();
        metadata.insert(key.to_owned(), value);
        write_gguf(&path, &metadata, &tensors);
        let error = refusal(&path);
        assert!(
            error.contains("kind.gguf") && error.contains(word),
            "{key}: {error}"
        );
    }
    for key in made.metadata().keys() {
        let mut metadata = made.metadata();
        metadata.remove(key);
        write_gguf(&path, &metadata, &tensors);
        // These have defaults; as many heads of keys as of queries do not fit the tensors.
        let optional = ["key_length", "value_length", "freq_base", "eos_token_id"];
        match load(&wanted(&path)) {
            Ok(_) => assert!(optional.iter().any(|o| key.ends_with(o)), "{key}"),
            Err(error) => {
                let word = if key.ends_with("head_count_kv") {
                    "attn_k.weight"
                } else {
                    key
                };
                assert!(error.to_string().contains(word), "{key}: {error}");
            }
        }
    }
    let mut many = tensors;
    let more = Tensor::zeros(8, DType::F32, &Device::Cpu).unwrap();
    many.insert(
        "blk.0.attn_sinks".to_owned(),
        QTensor::quantize(&more, GgmlDType::F32).unwrap(),
    );
    write_gguf(&path, &made.metadata(), &many);
    assert!(refusal(&path).contains("attn_sinks"));
}

#[test]
fn a_safetensors_header_longer_than_the_format_allows_is_refused_before_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    Made::new(small(), 1).folder(dir.path(), 1, DType::F32);
    let path = dir.path().join("model.safetensors");
    let mut bytes = 200_000_000u64.to_le_bytes().to_vec();
    bytes.push(b'{');
    fs::write(&path, bytes).unwrap();
    // As long as it says, and empty.
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_len(300_000_000).unwrap();
    let (error, taken) = super::super::super::measured::measured(|| refusal(dir.path()));
    assert!(
        error.contains("model.safetensors") && error.contains("100000000 are allowed"),
        "{error}"
    );
    assert!(taken < 8 << 20, "{taken} bytes of memory");
}
