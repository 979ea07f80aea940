//! The demo's model in 32 bits against candle-transformers, on a real prompt.

use candle_core::{Device as On, Tensor};

use super::super::compute::Cpu;
use super::super::kernels::{Format, paths};
use super::super::load::{Loaded, Wanted, load};
use super::super::model::Model;
use super::super::reference::Reference;
use super::super::step::{Answer, Forward, Span, Step, Wanted as Row};
use super::*;

fn loaded() -> Loaded {
    load(&Wanted {
        model: &cache().join("models/SmolLM2-135M-Instruct.Q4_1.gguf"),
        adapter: Some(&Path::new(env!("CARGO_MANIFEST_DIR")).join("adapters/movielens")),
        tokenizer: None,
        thinking: false,
    })
    .unwrap()
}

/// Tokens from `start` on into these blocks; the logits behind the last of them.
fn logits(model: &mut Model<Cpu>, tokens: &[u32], start: usize, blocks: &[u32]) -> Vec<f32> {
    let rows = tokens.len();
    let step = Step {
        tokens: tokens.to_vec(),
        spans: vec![Span {
            rows,
            start,
            blocks: blocks.to_vec(),
        }],
        wanted: vec![Row {
            row: rows - 1,
            logits: true,
        }],
    };
    match model.step(&step).unwrap().remove(0) {
        Answer::Logits(logits) => logits,
        Answer::Likeliest(_) => panic!("no logits"),
    }
}

fn close(wanted: &[f32], found: &[f32], what: &str) {
    let largest = wanted.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    let off = wanted.iter().zip(found).map(|(a, b)| (a - b).abs());
    let off = off.fold(0.0, f32::max);
    assert!(off <= 1e-4 * largest, "{what}: off by {off} of {largest}");
}

#[test]
fn the_real_models_logits_are_candle_transformers_whole_in_chunks_and_behind_a_shared_prefix() {
    let Loaded {
        spec,
        mut tensors,
        chat,
        ..
    } = loaded();
    let mut prompt = chat.encode(SYSTEM, EVENTS).unwrap();
    let n = prompt.len();
    assert!((100..256).contains(&n), "{n}");
    // The prompt, and one token behind it.
    prompt.push(chat.text_ids("Likes").unwrap()[0]);
    let (behind, after) = {
        let mut reference = Reference::new(&spec, tensors.as_mut(), 256).unwrap();
        let mut forward = |tokens: &[u32], position| {
            let tokens = Tensor::new(tokens, &On::Cpu).unwrap().unsqueeze(0).unwrap();
            let logits = reference.forward(&tokens, position).unwrap();
            logits.to_vec1::<f32>().unwrap()
        };
        (forward(&prompt[..n], 0), forward(&prompt[n..], n))
    };
    let mut tensors = loaded().tensors;
    let compute = Cpu::new(paths()[0], &spec, Format::F32, 32, 256, 2).unwrap();
    let mut model = Model::new(compute, &spec, tensors.as_mut()).unwrap();
    let blocks: Vec<u32> = (0..8).rev().collect();
    let whole = logits(&mut model, &prompt[..n], 0, &blocks);
    close(&behind, &whole, "whole");
    let next = logits(&mut model, &prompt[n..], n, &blocks);
    close(&after, &next, "the token behind it");
    let chunks: Vec<u32> = (8..16).collect();
    logits(&mut model, &prompt[..40], 0, &chunks);
    logits(&mut model, &prompt[40..41], 40, &chunks);
    let last = logits(&mut model, &prompt[41..n], 41, &chunks);
    close(&behind, &last, "in chunks");
    // Two whole blocks are shared with the first, the third is copied in its middle.
    model.copy_block(blocks[2], 16).unwrap();
    let shared: Vec<u32> = blocks[..2].iter().copied().chain(16..22).collect();
    let last = logits(&mut model, &prompt[75..n], 75, &shared);
    close(&behind, &last, "behind a shared prefix");
}
