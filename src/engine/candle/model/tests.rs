//! The packed forward against candle-transformers' models, which compute one sequence at a time.

use candle_core::{DType, Device};

use super::*;
use crate::engine::candle::compute::{Cpu, TensorCompute};
use crate::engine::candle::kernels::{Format, paths};
use crate::engine::candle::made::{self, Made};
use crate::engine::candle::spec::RopeScaling;
use crate::engine::candle::step::{BLOCK, Span, Wanted};

/// Blocks of the test's cache.
const BLOCKS: usize = 24;

/// How far from the reference 16 bits may be.
const HALVES: f32 = 0.1;

/// Both implementations of the operations on the same small model: the kernels on every path that the processor has, the
/// best one first; candle's also grouped as on a GPU, and in the number format that one takes.
struct Both {
    cpus: Vec<(&'static str, Model<Cpu>)>,
    tensors: Model<TensorCompute>,
    widely: Model<TensorCompute>,
    halves: Model<TensorCompute>,
    made: Made,
}

impl Both {
    fn new(spec: Spec) -> Self {
        let mut made = Made::new(spec, 11);
        let spec = made.spec.clone();
        let mut cpus = Vec::new();
        for path in paths() {
            let cpu = Cpu::new(path, &spec, Format::F32, BLOCKS, 512, 2).unwrap();
            cpus.push((
                path.name(),
                Model::new(cpu, &spec, &mut made.tensors).unwrap(),
            ));
        }
        let mut tensors = |dtype, widely| {
            let mut compute =
                TensorCompute::new(&spec, &Device::Cpu, dtype, BLOCKS, spec.context).unwrap();
            if widely {
                compute = compute.widely();
            }
            Model::new(compute, &spec, &mut made.tensors).unwrap()
        };
        Self {
            tensors: tensors(DType::F32, false),
            widely: tensors(DType::F32, true),
            halves: tensors(DType::BF16, true),
            cpus,
            made,
        }
    }

    /// Runs a step on both. What is wanted is each sequence with its position.
    fn step(&mut self, sequences: &[(&Sequence, std::ops::Range<usize>, &[usize])]) {
        let mut step = Step::default();
        let mut asked = Vec::new();
        for (sequence, part, wanted) in sequences {
            let first = step.tokens.len();
            for &at in *wanted {
                step.wanted.push(Wanted {
                    row: first + at - part.start,
                    logits: true,
                });
                asked.push((&sequence.tokens[..=at], at));
            }
            step.tokens.extend(&sequence.tokens[part.clone()]);
            step.spans.push(Span {
                rows: part.len(),
                start: part.start,
                blocks: sequence.blocks.clone(),
            });
        }
        let tensors = self.tensors.step(&step).unwrap();
        let widely = self.widely.step(&step).unwrap();
        let halves = self.halves.step(&step).unwrap();
        let mut exact = vec![("tensors", tensors), ("tensors, grouped widely", widely)];
        for (name, cpu) in &mut self.cpus {
            exact.push((name, cpu.step(&step).unwrap()));
        }
        for (_, answers) in &exact {
            assert_eq!(answers.len(), asked.len());
        }
        assert_eq!(halves.len(), asked.len());
        for (index, (tokens, at)) in asked.iter().enumerate() {
            let wanted = made::logits(&self.made.spec, &mut self.made.tensors, tokens);
            for (name, answers) in &exact {
                close(
                    &wanted,
                    logits(&answers[index]),
                    &format!("{name}, position {at}"),
                );
            }
            let off = off(&wanted, logits(&halves[index]));
            assert!(off < HALVES, "in bf16, position {at}: {off}");
        }
    }

    fn copy_block(&mut self, from: u32, to: u32) {
        for (_, cpu) in &mut self.cpus {
            cpu.copy_block(from, to).unwrap();
        }
        self.tensors.copy_block(from, to).unwrap();
        self.widely.copy_block(from, to).unwrap();
        self.halves.copy_block(from, to).unwrap();
    }
}

fn logits(answer: &Answer) -> &[f32] {
    match answer {
        Answer::Logits(logits) => logits,
        Answer::Likeliest(_) => panic!("no logits"),
    }
}

fn close(wanted: &[f32], found: &[f32], what: &str) {
    let largest = wanted.iter().fold(1.0f32, |most, x| most.max(x.abs()));
    for (index, (a, b)) in wanted.iter().zip(found).enumerate() {
        assert!(
            (a - b).abs() <= 2e-4 * largest,
            "{what}: token {index} has {b}, not {a}"
        );
    }
}

/// The size of the error against what is wanted, root mean square.
fn off(wanted: &[f32], found: &[f32]) -> f32 {
    let errors: f32 = wanted.iter().zip(found).map(|(a, b)| (a - b).powi(2)).sum();
    (errors / wanted.iter().map(|a| a * a).sum::<f32>()).sqrt()
}

#[derive(Clone)]
struct Sequence {
    tokens: Vec<u32>,
    blocks: Vec<u32>,
}

fn sequence(seed: u64, length: usize, blocks: &[u32]) -> Sequence {
    let mut rng = fastrand::Rng::with_seed(seed);
    Sequence {
        tokens: (0..length).map(|_| rng.u32(..300)).collect(),
        blocks: blocks.to_vec(),
    }
}

/// Head layouts, widths and architectures that differ in what the code must not confuse.
fn specs() -> Vec<Spec> {
    let llama = made::small();
    let qwen3 = Spec {
        head_norms: true,
        // Wider than hidden / heads, as in the small Qwen3 models.
        head_dim: 16,
        ..llama.clone()
    };
    vec![
        llama.clone(),
        Spec {
            hidden: 72,
            heads: 9,
            kv_heads: 3,
            layers: 3,
            tied: false,
            ..llama.clone()
        },
        Spec {
            kv_heads: 4,
            ..llama.clone()
        },
        // SmolLM2's and Llama 3's heads, and such that fill no line.
        Spec {
            hidden: 256,
            head_dim: 64,
            ..llama.clone()
        },
        Spec {
            hidden: 96,
            head_dim: 24,
            ..llama.clone()
        },
        Spec {
            kv_heads: 1,
            rope_theta: 500_000.0,
            rope_scaling: Some(RopeScaling {
                factor: 8.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_context: 64,
            }),
            ..llama
        },
        qwen3.clone(),
        // Qwen3-8B's heads.
        Spec {
            head_dim: 128,
            ..qwen3.clone()
        },
        Spec {
            tied: false,
            kv_heads: 1,
            rope_theta: 1_000_000.0,
            ..qwen3
        },
    ]
}

#[test]
fn a_prompt_alone_has_the_references_logits() {
    for spec in specs() {
        let mut both = Both::new(spec);
        let one = sequence(1, 70, &[5, 2, 9]);
        both.step(&[(&one, 0..70, &[0, 31, 32, 69])]);
    }
}

#[test]
fn a_ragged_batch_of_prompts_decodes_and_verify_runs_has_the_references_logits() {
    for spec in specs() {
        let mut both = Both::new(spec);
        let long = sequence(1, 90, &[3, 8, 1]);
        let short = sequence(2, 40, &[7, 4]);
        let new = sequence(3, 5, &[0]);
        both.step(&[(&long, 0..60, &[]), (&short, 0..33, &[32])]);
        // A chunk that crosses blocks, a run of eight to verify, a single token beside each other, and a new one.
        both.step(&[
            (&long, 60..81, &[80]),
            (&short, 33..39, &[33, 34, 35, 36, 37, 38]),
            (&new, 0..4, &[3]),
        ]);
        both.step(&[
            (&long, 81..82, &[81]),
            (&short, 39..40, &[39]),
            (&new, 4..5, &[4]),
        ]);
    }
}

#[test]
fn a_prompt_in_chunks_has_the_logits_of_the_whole() {
    for spec in specs() {
        let mut both = Both::new(spec);
        let one = sequence(4, 80, &[6, 0, 3]);
        let mut from = 0;
        for size in [1, 7, 24, 32, 3, 13] {
            both.step(&[(&one, from..from + size, &[from + size - 1])]);
            from += size;
        }
        assert_eq!(from, 80);
    }
}

#[test]
fn a_shared_prefix_and_a_copied_block_serve_another_sequence() {
    for spec in specs() {
        let mut both = Both::new(spec);
        let first = sequence(5, 70, &[2, 3, 4]);
        let mut second = sequence(6, 75, &[2, 10, 11]);
        // Fifty tokens in common: a whole block is shared, the one behind it copied and written on.
        second.tokens[..50].copy_from_slice(&first.tokens[..50]);
        both.step(&[(&first, 0..70, &[69])]);
        both.copy_block(3, 10);
        both.step(&[(&second, 50..75, &[50, 74])]);
        // The first one's own block is as it was.
        let mut longer = first.clone();
        longer.tokens.push(17);
        both.step(&[(&longer, 70..71, &[70])]);
    }
}

#[test]
fn what_was_rejected_leaves_nothing_behind() {
    for spec in specs() {
        let mut both = Both::new(spec);
        let right = sequence(7, 60, &[1, 2]);
        let mut wrong = right.clone();
        for token in &mut wrong.tokens[41..55] {
            *token = (*token + 1) % 300;
        }
        both.step(&[(&right, 0..40, &[39])]);
        both.step(&[(&wrong, 40..55, &[40, 54])]);
        both.step(&[(&right, 41..60, &[41, 59])]);
    }
}

#[test]
fn the_likeliest_token_is_the_first_of_the_highest_logits() {
    let mut both = Both::new(made::small());
    let one = sequence(8, 20, &[0]);
    let step = |logits| Step {
        tokens: one.tokens.clone(),
        spans: vec![Span {
            rows: 20,
            start: 0,
            blocks: vec![0],
        }],
        wanted: [3, 19].map(|row| Wanted { row, logits }).to_vec(),
    };
    let cpu = &mut both.cpus[0].1;
    let all = cpu.step(&step(true)).unwrap();
    let likeliest = cpu.step(&step(false)).unwrap();
    let tensors = both.tensors.step(&step(false)).unwrap();
    for (all, likeliest) in all.iter().zip(&likeliest) {
        let (Answer::Logits(logits), Answer::Likeliest(token)) = (all, likeliest) else {
            panic!("{all:?} {likeliest:?}");
        };
        let highest = logits.iter().copied().fold(f32::MIN, f32::max);
        let first = logits.iter().position(|&l| l == highest).unwrap();
        assert_eq!(*token as usize, first);
    }
    assert_eq!(likeliest, tensors);
}

#[test]
fn a_position_without_a_block_or_beyond_the_context_and_a_token_beyond_the_vocabulary_are_errors() {
    let mut both = Both::new(made::small());
    let mut step = Step {
        tokens: vec![1; 40],
        spans: vec![Span {
            rows: 40,
            start: 0,
            blocks: vec![0],
        }],
        wanted: Vec::new(),
    };
    const { assert!(40 > BLOCK) };
    let mut refused = |step: &Step| {
        for (name, cpu) in &mut both.cpus {
            assert!(cpu.step(step).is_err(), "{name}");
        }
        assert!(both.tensors.step(step).is_err());
    };
    refused(&step);
    step.spans[0].blocks.push(1);
    step.tokens[7] = 300;
    refused(&step);
    step.tokens[7] = 1;
    step.spans[0].start = both.made.spec.context - 8;
    step.spans[0].blocks = (0..5).collect();
    refused(&step);
}
