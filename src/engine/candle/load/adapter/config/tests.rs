use serde_json::json;

use super::*;

fn parse(config: &Value) -> Result<Config, String> {
    Config::parse(&serde_json::to_vec(config).unwrap())
}

fn plain() -> Value {
    json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 16, "lora_alpha": 32, "lora_dropout": 0.1, "bias": "none",
        "target_modules": ["q_proj"], "use_rslora": false, "use_dora": false, "rank_pattern": {}, "alpha_pattern": {},
        "fan_in_fan_out": false, "modules_to_save": null, "init_lora_weights": true, "layers_to_transform": [0, 1],
        "loftq_config": {}, "exclude_modules": null, "megatron_config": null, "lora_bias": false, "qalora_group_size": 16,
    })
}

fn with(key: &str, value: Value) -> Value {
    let mut config = plain();
    config[key] = value;
    config
}

#[test]
fn what_pefts_own_defaults_write_is_taken() {
    let scale = parse(&plain())
        .unwrap()
        .scale("model.layers.0.self_attn.q_proj");
    assert_eq!(
        scale,
        Scale {
            rank: 16,
            factor: 2.0
        }
    );
    let old = json!({"r": 8, "lora_alpha": 8});
    assert_eq!(parse(&old).unwrap().scale("x").factor, 1.0);
    let stable = parse(&with("use_rslora", json!(true))).unwrap();
    assert_eq!(stable.scale("x").factor, 8.0);
}

#[test]
fn a_pattern_is_for_the_end_of_a_name_in_whole_parts_and_the_first_one_counts() {
    let text = br#"{"r": 4, "lora_alpha": 8, "rank_pattern": {"layers.1.mlp.up_proj": 3, "up_proj": 2, "self_attn.(q|k)_proj": 1, "^model.layers.0.mlp.down_proj": 5},
        "alpha_pattern": {"up_proj": 6, "layers.1.mlp.up_proj": 60}}"#;
    let config = Config::parse(text).unwrap();
    let scale = |module| {
        let Scale { rank, factor } = config.scale(module);
        (rank, factor)
    };
    assert_eq!(scale("model.layers.1.mlp.up_proj"), (3, 2.0));
    assert_eq!(scale("model.layers.0.mlp.up_proj"), (2, 3.0));
    // Not a whole part of the name.
    assert_eq!(scale("model.layers.0.mlp.my_up_proj"), (4, 2.0));
    assert_eq!(scale("model.layers.11.mlp.up_proj"), (2, 3.0));
    assert_eq!(scale("model.layers.0.self_attn.k_proj"), (1, 8.0));
    assert_eq!(scale("model.layers.0.self_attn.v_proj"), (4, 2.0));
    // Not the end of it.
    assert_eq!(scale("up_proj.inner"), (4, 2.0));
    assert_eq!(scale("model.layers.0.mlp.down_proj"), (5, 1.6));
}

#[test]
fn what_would_not_be_merged_is_refused_by_its_key() {
    for (key, value) in [
        ("peft_type", json!("LOHA")),
        ("bias", json!("all")),
        ("fan_in_fan_out", json!(true)),
        ("use_dora", json!(true)),
        ("lora_bias", json!(true)),
        ("modules_to_save", json!(["lm_head"])),
        ("layer_replication", json!([[0, 2]])),
        ("trainable_token_indices", json!([1, 2])),
        ("target_parameters", json!(["experts.up"])),
        ("alora_invocation_tokens", json!([5])),
        ("init_lora_weights", json!("pissa_niter_4")),
        ("init_lora_weights", json!("olora")),
        ("rank_pattern", json!({"(?=x)": 1})),
        ("rank_pattern", json!({"(": 1})),
        ("alpha_pattern", json!({"(((a{99}){99}){99}){99}": 1})),
    ] {
        let error = parse(&with(key, value)).err().unwrap();
        assert!(
            error.contains(key) && error.contains("not supported"),
            "{key}: {error}"
        );
    }
    for neutral in [json!([]), json!(null)] {
        assert!(parse(&with("modules_to_save", neutral)).is_ok());
    }
}

#[test]
fn ranks_and_alphas_that_cannot_be_are_refused() {
    for (key, value, word) in [
        ("r", json!(0), "rank of r is 0"),
        ("r", json!(-4), "rank of r is -4"),
        ("r", json!(1u64 << 40), "rank of r"),
        ("r", json!("16"), "invalid type"),
        ("rank_pattern", json!({"q_proj": 0}), "rank of q_proj is 0"),
        ("rank_pattern", json!([1]), "object of patterns"),
        ("lora_alpha", json!(null), "invalid type"),
    ] {
        let error = parse(&with(key, value)).err().unwrap();
        assert!(error.contains(word), "{key}: {error}");
    }
    assert!(
        Config::parse(b"{\"r\": 1}")
            .err()
            .unwrap()
            .contains("lora_alpha")
    );
}
