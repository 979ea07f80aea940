use serde_json::json;

use super::*;

/// Qwen3-8B's own, shortened to what counts.
fn qwen3() -> Value {
    json!({
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096,
        "intermediate_size": 12288, "max_position_embeddings": 40960, "max_window_layers": 36, "model_type": "qwen3",
        "num_attention_heads": 32, "num_hidden_layers": 36, "num_key_value_heads": 8, "rms_norm_eps": 1e-6, "rope_scaling": null,
        "rope_theta": 1_000_000, "sliding_window": null, "tie_word_embeddings": false, "use_sliding_window": false, "vocab_size": 151_936,
    })
}

/// Llama 3.2 1B's own.
fn llama3() -> Value {
    json!({
        "attention_bias": false, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 8192,
        "max_position_embeddings": 131_072, "mlp_bias": false, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16,
        "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-5, "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0,
        "low_freq_factor": 1.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "rope_theta": 500_000.0,
        "tie_word_embeddings": true, "vocab_size": 128_256,
    })
}

fn with(mut config: Value, key: &str, value: Value) -> Value {
    config[key] = value;
    config
}

#[test]
fn qwen3s_and_llama_3s_sizes_are_read() {
    let spec = Spec::from_config(&qwen3()).unwrap();
    let wanted = Spec {
        layers: 36,
        hidden: 4096,
        intermediate: 12288,
        vocab: 151_936,
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        context: 40960,
        norm_epsilon: 1e-6,
        rope_theta: 1e6,
        rope_scaling: None,
        head_norms: true,
        tied: false,
    };
    assert_eq!(spec, wanted);
    let spec = Spec::from_config(&llama3()).unwrap();
    let scaling = RopeScaling {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_context: 8192,
    };
    assert_eq!(spec.rope_scaling, Some(scaling));
    assert_eq!(
        (spec.head_dim, spec.tied, spec.head_norms),
        (64, true, false)
    );
}

#[test]
fn what_is_left_out_is_what_transformers_takes() {
    let bare = json!({
        "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "max_position_embeddings": 8192,
        "num_attention_heads": 9, "num_hidden_layers": 30, "vocab_size": 49152,
    });
    let spec = Spec::from_config(&bare).unwrap();
    assert_eq!((spec.kv_heads, spec.head_dim, spec.tied), (9, 64, false));
    assert_eq!((spec.rope_theta, spec.norm_epsilon), (10_000.0, 1e-6));
    let bare = with(qwen3(), "head_dim", Value::Null);
    assert_eq!(Spec::from_config(&bare).unwrap().head_dim, 128);
}

#[test]
fn rotary_parameters_are_found_where_transformers_5_keeps_them() {
    let mut config = llama3();
    let mut parameters = config["rope_scaling"].take();
    parameters["rope_theta"] = json!(500_000.0);
    let whole = config.as_object_mut().unwrap();
    whole.remove("rope_theta");
    whole.remove("rope_scaling");
    config["rope_parameters"] = parameters;
    assert_eq!(
        Spec::from_config(&config).unwrap(),
        Spec::from_config(&llama3()).unwrap()
    );
    let plain = with(
        qwen3(),
        "rope_parameters",
        json!({"rope_type": "default", "rope_theta": 5e5}),
    );
    assert_eq!(Spec::from_config(&plain).unwrap().rope_theta, 5e5);
}

#[test]
fn what_is_not_computed_is_refused_by_its_key() {
    let yarn =
        json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768});
    for (key, value, word) in [
        ("model_type", json!("mistral"), "mistral"),
        ("use_sliding_window", json!(true), "sliding_window"),
        (
            "layer_types",
            json!(["full_attention", "sliding_attention"]),
            "layer_types",
        ),
        ("attention_bias", json!(true), "attention_bias"),
        ("mlp_bias", json!(true), "mlp_bias"),
        ("hidden_act", json!("gelu"), "hidden_act gelu"),
        ("rope_scaling", yarn, "yarn"),
        (
            "rope_scaling",
            json!({"type": "linear", "factor": 2.0}),
            "linear",
        ),
        ("rope_scaling", json!({"factor": 2.0}), "none"),
        ("partial_rotary_factor", json!(0.5), "partial_rotary_factor"),
        (
            "quantization_config",
            json!({"quant_method": "gptq"}),
            "quantization_config",
        ),
    ] {
        let error = Spec::from_config(&with(qwen3(), key, value)).unwrap_err();
        assert!(
            error.contains(word) && error.contains("not supported"),
            "{key}: {error}"
        );
    }
    let error = Spec::from_config(&with(llama3(), "sliding_window", json!(4096))).unwrap_err();
    assert!(error.contains("sliding_window"), "{error}");
    // Qwen3 keeps a width that it does not use.
    assert!(Spec::from_config(&with(qwen3(), "sliding_window", json!(4096))).is_ok());
}

#[test]
fn sizes_that_cannot_be_are_refused_by_name() {
    for (key, value, word) in [
        ("num_hidden_layers", json!(0), "layers is 0"),
        ("num_hidden_layers", json!(u64::MAX), "layers"),
        ("num_hidden_layers", json!(-1), "num_hidden_layers"),
        ("num_hidden_layers", json!(1.5), "num_hidden_layers"),
        ("vocab_size", json!(1u64 << 40), "vocabulary"),
        ("vocab_size", json!("many"), "vocab_size"),
        ("hidden_size", Value::Null, "hidden_size is missing"),
        ("num_attention_heads", json!(0), "heads is 0"),
        ("num_key_value_heads", json!(0), "keys and values is 0"),
        ("num_key_value_heads", json!(5), "cannot share"),
        ("num_key_value_heads", Value::Null, "num_key_value_heads"),
        ("head_dim", json!(63), "63 is odd"),
        ("head_dim", json!(0), "head width is 0"),
        ("max_position_embeddings", json!(0), "context"),
        ("rms_norm_eps", json!(0), "epsilon"),
        ("rms_norm_eps", json!(-1e-6), "epsilon"),
        ("rope_theta", json!(0.0), "rotary base"),
        ("tie_word_embeddings", json!("yes"), "tie_word_embeddings"),
    ] {
        let error = Spec::from_config(&with(qwen3(), key, value)).unwrap_err();
        assert!(error.contains(word), "{key}: {error}");
    }
    let unsplit = with(
        with(llama3(), "head_dim", Value::Null),
        "num_attention_heads",
        json!(30),
    );
    let error = Spec::from_config(&unsplit).unwrap_err();
    assert!(error.contains("cannot be split"), "{error}");
    let mut flat = llama3();
    flat["rope_scaling"]["high_freq_factor"] = json!(1.0);
    let error = Spec::from_config(&flat).unwrap_err();
    assert!(error.contains("rotary scaling"), "{error}");
    assert!(Spec::from_config(&json!([1, 2])).is_err());
}

#[test]
fn llama_3s_divisors_leave_short_waves_alone_and_stretch_long_ones_in_full() {
    let spec = Spec::from_config(&llama3()).unwrap();
    let divisors = spec.rope_scaling.unwrap().divisors(spec.rope_theta, 64);
    assert_eq!(divisors.len(), 32);
    assert!(divisors.is_sorted());
    assert_eq!((divisors[0], divisors[31]), (1.0, 32.0));
    // Of the 32 of Llama 3.2 1B 15 are left alone, 3 lie between, 14 are divided by 32.
    let count = |wanted: f64| divisors.iter().filter(|d| **d == wanted).count();
    assert_eq!((count(1.0), count(32.0)), (15, 14));
}

#[test]
fn every_weight_of_a_model_is_named_once() {
    let spec = Spec::from_config(&qwen3()).unwrap();
    let weights = spec.weights();
    let names: std::collections::BTreeSet<&String> = weights.iter().map(|(name, _)| name).collect();
    assert_eq!(names.len(), weights.len());
    assert_eq!(weights.len(), 36 * 11 + 3);
    // 8.2 thousand million parameters, as the model's card says.
    let count: usize = weights
        .iter()
        .map(|(_, s)| s.iter().product::<usize>())
        .sum();
    assert_eq!(count, 8_190_735_360);
}
