//! What is true of SmolLM's tokens by what GPT-2's byte-pair encoding is, whatever a library says: which words merges can reach into.

use super::*;

/// A model whose tokenizer has these merges besides the small one's; each makes a token, from 265 on.
fn with_merges(merges: &[[&str; 2]]) -> Loaded {
    let made = Made::new(small(), 1);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let mut metadata = made.metadata();
    let text = |text: &str| Meta::String(text.to_owned());
    metadata.insert("tokenizer.ggml.pre".to_owned(), text("smollm"));
    for merge in merges {
        for (key, value) in [
            ("tokenizer.ggml.tokens", text(&merge.concat())),
            ("tokenizer.ggml.token_type", Meta::I32(1)),
            ("tokenizer.ggml.merges", text(&merge.join(" "))),
        ] {
            match metadata.get_mut(key).unwrap() {
                Meta::Array(list) => list.push(value),
                _ => panic!("{key}"),
            }
        }
    }
    write_gguf(&path, &metadata, &made.gguf_tensors(GgmlDType::F32));
    opened(&path)
}

/// Single bytes are the tokens 0 to 255; `he`, `the`, ` the` and `in` are 256 to 259.
#[test]
fn smollms_words_are_those_of_gpt_2_with_each_digit_alone() {
    let merges = [
        ["1", "2"],
        ["Ġ", "1"],
        ["Ċ", "Ċ"],
        ["'", "s"],
        ["t", "'"],
        ["a", "!"],
        ["Ġ", "!"],
        ["!", "!"],
        ["Ġ", "Ġ"],
        ["ĉ", "a"],
        ["Ã", "©"],
    ];
    let id = |merge: &str| {
        let at = merges.iter().position(|m| m.concat() == merge).unwrap();
        265 + u32::try_from(at).unwrap()
    };
    let chat = with_merges(&merges).chat;
    let [space, newline, tab] = [32, 10, 9];
    let facts: Vec<(&str, Vec<u32>)> = vec![
        // Digits stand alone: neither with each other nor with a space or a letter before them.
        ("12", vec![49, 50]),
        (" 12", vec![space, 49, 50]),
        ("x1y", vec![120, 49, 121]),
        ("²3", vec![0xc2, 0xb2, 51]),
        // One space goes with the letters or signs behind it, further ones do not.
        ("the", vec![257]),
        (" the", vec![258]),
        ("  the", vec![space, 258]),
        ("   the", vec![id("ĠĠ"), 258]),
        ("in the", vec![259, 258]),
        (" !!", vec![id("Ġ!"), 33]),
        ("a  ", vec![97, id("ĠĠ")]),
        // Other white space goes with none of them.
        ("\ta", vec![tab, 97]),
        ("\nthe", vec![newline, 257]),
        // The last before a word is a word of its own; at the end all are one.
        ("a\n\na", vec![97, newline, newline, 97]),
        ("a\n\n", vec![97, id("ĊĊ")]),
        ("a\n\n\na", vec![97, id("ĊĊ"), newline, 97]),
        // Letters and signs do not mix, but for what English cuts off.
        ("a!", vec![97, 33]),
        ("!!", vec![id("!!")]),
        ("it's", vec![105, 116, id("'s")]),
        ("t'x", vec![116, 39, 120]),
        // Bytes of UTF-8, each a letter of its own, which are letters to the merges as well.
        ("é", vec![id("Ã©")]),
        ("日", vec![0xe6, 0x97, 0xa5]),
        ("🎬", vec![0xf0, 0x9f, 0x8e, 0xac]),
        (
            "\u{0}\u{7f}\u{a0}\u{ad}",
            vec![0, 0x7f, 0xc2, 0xa0, 0xc2, 0xad],
        ),
        ("", vec![]),
    ];
    for (text, ids) in facts {
        assert_eq!(chat.text_ids(text).unwrap(), ids, "{text:?}");
        assert_eq!(chat.decode(&ids).unwrap(), text);
    }
}

/// GPT-2's `bytes_to_unicode`: printable bytes stand for themselves, the others in their order for the letters from U+0100 on.
#[test]
fn the_letters_of_bytes_are_gpt_2s() {
    let tokenizer = super::super::super::made::tokenizer();
    for (letter, byte) in [
        ("Ā", 0x00),
        ("ĉ", 0x09),
        ("Ċ", 0x0a),
        ("č", 0x0d),
        ("Ġ", 0x20),
        ("!", 0x21),
        ("~", 0x7e),
        ("ġ", 0x7f),
        ("Ģ", 0x80),
        ("ł", 0xa0),
        ("¡", 0xa1),
        ("¬", 0xac),
        ("Ń", 0xad),
        ("®", 0xae),
        ("ÿ", 0xff),
    ] {
        assert_eq!(tokenizer["model"]["vocab"][letter], byte, "{letter}");
    }
}
