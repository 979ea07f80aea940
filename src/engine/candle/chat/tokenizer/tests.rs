use serde_json::json;

use super::super::super::made::{TEMPLATE, tokenizer as sound};
use super::super::{Chat, Parts};
use super::*;

fn chat(tokenizer: Value) -> Result<Chat, String> {
    let parts = Parts {
        tokenizer,
        template: TEMPLATE.to_owned(),
        bos: String::new(),
        stops: vec![262],
        vocab: 300,
        thinking: false,
    };
    Chat::new(parts).map_err(|e| e.to_string())
}

fn changed(part: &str, value: &Value) -> Result<Chat, String> {
    let mut whole = sound();
    match part.split_once('.') {
        Some((model, part)) => whole[model][part] = value.clone(),
        None => whole[part] = value.clone(),
    }
    chat(whole)
}

/// Each made the library panic, or grow without bound: while it read the file, at the first text, or at the first answer.
#[test]
fn parts_of_a_tokenizer_that_the_library_cannot_be_given_are_refused_by_name() {
    let replace =
        |content: &str| json!({"type": "Replace", "pattern": {"String": "a"}, "content": content});
    for (part, value, word) in [
        (
            "model.continuing_subword_prefix",
            json!("longer than any token"),
            "continuing_subword_prefix",
        ),
        (
            "model.end_of_word_suffix",
            json!("</w>"),
            "end_of_word_suffix",
        ),
        (
            "pre_tokenizer",
            json!({"type": "FixedLength", "length": 0}),
            "FixedLength",
        ),
        (
            "pre_tokenizer",
            json!({"type": "Sequence", "pretokenizers": [{"type": "FixedLength", "length": 0}]}),
            "FixedLength",
        ),
        (
            "normalizer",
            json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
            "Precompiled",
        ),
        (
            "normalizer",
            json!({"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": [{"type": "Nmt"}]}]}),
            "Nmt",
        ),
        ("normalizer", replace("aa"), "makes a text longer"),
        (
            "normalizer",
            json!({"type": "Replace", "pattern": {"String": ""}, "content": "b"}),
            "makes a text longer",
        ),
        (
            "normalizer",
            json!({"type": "Replace", "pattern": {"Regex": ""}, "content": "bb"}),
            "makes a text longer",
        ),
        (
            "normalizer",
            json!({"type": "Prepend", "prepend": "123456789"}),
            "prepends too much",
        ),
        (
            "normalizer",
            json!({"type": "Sequence", "normalizers": vec![replace("b"); 9]}),
            "9 steps",
        ),
        (
            "decoder",
            json!({"type": "Strip", "content": "h", "start": 0, "stop": 5}),
            "cuts off ends",
        ),
        (
            "decoder",
            json!({"type": "Strip", "content": "h", "start": 0}),
            "cuts off ends",
        ),
        (
            "decoder",
            json!({"type": "CTC", "pad_token": "", "word_delimiter_token": "", "cleanup": true}),
            "CTC",
        ),
        ("decoder", json!({"type": 3}), "decoder \"\""),
        ("decoder", json!("Fuse"), "decoder \"\""),
    ] {
        let error = changed(part, &value)
            .err()
            .unwrap_or_else(|| panic!("{part} {value} is taken"));
        assert!(
            error.contains(word) && error.contains("not supported")
                || error.contains("are supported"),
            "{error}"
        );
    }
}

#[test]
fn the_parts_of_llama_mistral_and_qwen_tokenizers_are_taken() {
    for (part, value) in [
        (
            "normalizer",
            json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}),
        ),
        ("normalizer", json!({"type": "NFC"})),
        ("normalizer", Value::Null),
        (
            "pre_tokenizer",
            json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false}),
        ),
        (
            "pre_tokenizer",
            json!({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true}, {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}]}),
        ),
        ("pre_tokenizer", Value::Null),
        (
            "decoder",
            json!({"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}),
        ),
        ("model.continuing_subword_prefix", json!("")),
        ("model.continuing_subword_prefix", Value::Null),
    ] {
        if let Err(error) = changed(part, &value) {
            panic!("{part} {value}: {error}");
        }
    }
}

#[test]
fn dropout_never_makes_the_same_text_other_tokens() {
    let chat = changed("model.dropout", &json!(0.5)).unwrap();
    let ids = chat.text_ids("the the the the in in in in").unwrap();
    assert_eq!(
        ids,
        changed("model.dropout", &Value::Null)
            .unwrap()
            .text_ids("the the the the in in in in")
            .unwrap()
    );
    assert!((0..50).all(|_| chat.text_ids("the the the the in in in in").unwrap() == ids));
}

#[test]
fn a_panic_of_the_library_is_an_error_where_a_text_is_encoded_and_where_an_answer_is_decoded() {
    // Oniguruma gives up on it after ten million tries, and its Rust side panics then.
    let slow = json!({"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": false});
    let text = "x".repeat(60);
    let chat_of_it = changed("pre_tokenizer", &slow).unwrap();
    let error = chat_of_it.text_ids(&text).unwrap_err().to_string();
    assert!(error.contains("tokenizer failed"), "{error}");
    assert!(!error.contains(&text));
    assert_eq!(chat_of_it.count(&text), u32::MAX);
    assert!(chat_of_it.text_ids("x").is_ok());
    let slow = json!({"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "Replace", "pattern": {"Regex": "(x+x+)+y"}, "content": ""}]});
    let chat_of_it = changed("decoder", &slow).unwrap();
    let error = chat_of_it.decode(&[120; 60]).unwrap_err().to_string();
    assert!(error.contains("tokenizer failed"), "{error}");
    assert!(chat_of_it.decode(&[104]).is_ok());
}
