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

/// Tokens, the first one's position, and the blocks they go to.
type Part<'a> = (&'a [u32], usize, &'a [u32]);

/// All of it in one step; the logits behind the last token of each.
fn ragged(model: &mut Model<Cpu>, parts: &[Part<'_>]) -> Vec<Vec<f32>> {
    let mut step = Step::default();
    for &(tokens, start, blocks) in parts {
        step.tokens.extend(tokens);
        step.spans.push(Span {
            rows: tokens.len(),
            start,
            blocks: blocks.to_vec(),
        });
        step.wanted.push(Row {
            row: step.tokens.len() - 1,
            logits: true,
        });
    }
    let answers = model.step(&step).unwrap().into_iter();
    let logits = answers.map(|answer| match answer {
        Answer::Logits(logits) => logits,
        Answer::Likeliest(_) => panic!("no logits"),
    });
    logits.collect()
}

fn logits(model: &mut Model<Cpu>, tokens: &[u32], start: usize, blocks: &[u32]) -> Vec<f32> {
    ragged(model, &[(tokens, start, blocks)]).remove(0)
}

fn close(wanted: &[f32], found: &[f32], what: &str) {
    let largest = wanted.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    let off = wanted.iter().zip(found).map(|(a, b)| (a - b).abs());
    let off = off.fold(0.0, f32::max);
    assert!(off <= 1e-4 * largest, "{what}: off by {off} of {largest}");
}

#[test]
fn the_real_models_logits_are_candle_transformers_however_its_tokens_come() {
    let Loaded {
        spec,
        mut tensors,
        chat,
        ..
    } = loaded();
    let mut prompt = chat.encode(SYSTEM, EVENTS).unwrap();
    let n = prompt.len();
    assert!((100..250).contains(&n), "{n}");
    // The prompt, and one token behind it.
    prompt.push(chat.text_ids("Likes").unwrap()[0]);
    // The logits behind the tokens up to each end, which the reference takes one part after the other.
    let mut expected = |ends: &[usize]| -> Vec<Vec<f32>> {
        let mut start = 0;
        let mut reference = Reference::new(&spec, tensors.as_mut(), 256).unwrap();
        let forward = |&end: &usize| {
            let tokens = Tensor::new(&prompt[start..end], &On::Cpu).unwrap();
            let tokens = tokens.unsqueeze(0).unwrap();
            let logits = reference.forward(&tokens, start).unwrap();
            start = end;
            logits.to_vec1::<f32>().unwrap()
        };
        ends.iter().map(forward).collect()
    };
    let late = expected(&[n, n + 1]);
    let early = expected(&[50]);
    let mut tensors = loaded().tensors;
    // The plain loops would take minutes.
    for path in paths().into_iter().filter(|path| path.name() != "portable") {
        let compute = Cpu::new(path, &spec, Format::F32, 40, 512, 2).unwrap();
        let mut model = Model::new(compute, &spec, tensors.as_mut()).unwrap();
        check(&mut model, &prompt, [&late[0], &late[1], &early[0]]);
    }
}

/// The logits behind the prompt but its last token, behind all of it, and behind its first fifty tokens are these.
fn check(model: &mut Model<Cpu>, prompt: &[u32], [behind, after, early]: [&[f32]; 3]) {
    let n = prompt.len() - 1;
    let blocks: Vec<u32> = (0..8).rev().collect();
    let whole = logits(model, &prompt[..n], 0, &blocks);
    close(behind, &whole, "whole");
    let next = logits(model, &prompt[n..], n, &blocks);
    close(after, &next, "the token behind it");
    let chunks: Vec<u32> = (8..16).collect();
    logits(model, &prompt[..40], 0, &chunks);
    logits(model, &prompt[40..41], 40, &chunks);
    let last = logits(model, &prompt[41..n], 41, &chunks);
    close(behind, &last, "in chunks");
    // Two whole blocks are shared with the first, the third is copied in its middle.
    model.copy_block(blocks[2], 16).unwrap();
    let shared: Vec<u32> = blocks[..2].iter().copied().chain(16..22).collect();
    let last = logits(model, &prompt[75..n], 75, &shared);
    close(behind, &last, "behind a shared prefix");
    // A draft that is rejected: others' tokens at the places that come next, then the right one.
    logits(model, &[prompt[0], prompt[1], prompt[2]], n, &shared);
    let next = logits(model, &prompt[n..], n, &shared);
    close(after, &next, "behind a rejected draft");
    // A whole prompt, the beginning of one, a chunk behind a prefix and a single token, side by side.
    let (whole, part): (Vec<u32>, Vec<u32>) = ((23..31).collect(), (31..33).collect());
    let found = ragged(
        model,
        &[
            (&prompt[..n], 0, &whole),
            (&prompt[..50], 0, &part),
            (&prompt[75..n], 75, &shared),
            (&prompt[n..], n, &blocks),
        ],
    );
    for (found, wanted) in found.iter().zip([behind, early, behind, after]) {
        close(wanted, found, "in a ragged batch");
    }
}
