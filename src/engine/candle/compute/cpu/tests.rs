//! The operations of the processor, in steps.

use candle_core::Device;

use super::super::super::kernels::paths;
use super::super::super::kernels::random::Random;
use super::super::super::spec::Spec;
use super::super::super::step::Span;
use super::*;
use Precision::{Asked, Fine};

const VOCAB: usize = 50;

fn spec() -> Spec {
    Spec {
        layers: 2,
        hidden: 48,
        intermediate: 72,
        vocab: VOCAB,
        heads: 6,
        kv_heads: 2,
        head_dim: 24,
        context: 200,
        norm_epsilon: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: None,
        head_norms: true,
        tied: true,
    }
}

/// A small model with weights at random.
struct Model {
    head: Matrix,
    norm: Vec<f32>,
    layers: Vec<(Matrix, Matrix, Matrix, Matrix)>,
    head_norms: (Vec<f32>, Vec<f32>),
}

fn weights(random: &mut Random, n: usize, k: usize) -> Tensor {
    let values = random.normals(n * k).iter().map(|v| v * 0.15).collect();
    Tensor::from_vec(values, (n, k), &Device::Cpu).unwrap()
}

impl Model {
    fn new(cpu: &Cpu, spec: &Spec) -> Self {
        let random = &mut Random::new(1);
        let (hidden, dim) = (spec.hidden, spec.head_dim);
        let embedding = weights(random, VOCAB, hidden);
        let mut vector = |len| random.normals(len).iter().map(|v| 1.0 + 0.1 * v).collect();
        let norm = vector(hidden);
        let head_norms = (vector(dim), vector(dim));
        let mut matrix = |precision, ns: &[usize], k| {
            let parts: Vec<_> = ns.iter().map(|&n| weights(random, n, k)).collect();
            cpu.matrix(&parts, precision).unwrap()
        };
        Self {
            layers: (0..spec.layers)
                .map(|_| {
                    (
                        matrix(
                            Fine,
                            &[spec.heads * dim, spec.kv_heads * dim, spec.kv_heads * dim],
                            hidden,
                        ),
                        matrix(Asked, &[hidden], spec.heads * dim),
                        matrix(Asked, &[spec.intermediate, spec.intermediate], hidden),
                        matrix(Fine, &[hidden], spec.intermediate),
                    )
                })
                .collect(),
            head: cpu.matrix(&[embedding], Fine).unwrap(),
            norm,
            head_norms,
        }
    }

    /// All rows' logits.
    fn step(&self, cpu: &mut Cpu, step: &Step) -> Vec<Vec<f32>> {
        cpu.begin(step).unwrap();
        let mut x = cpu.embed(&self.head, &step.tokens).unwrap();
        let norms = Some((&self.head_norms.0, &self.head_norms.1));
        for (layer, (qkv, o, gate_up, down)) in self.layers.iter().enumerate() {
            let h = cpu.norm(&x, &self.norm, qkv).unwrap();
            let h = cpu.linear(&h, qkv).unwrap();
            let h = cpu.attend(layer, h, norms).unwrap();
            let h = cpu.linear(&h, o).unwrap();
            cpu.add(&mut x, &h).unwrap();
            let h = cpu.norm(&x, &self.norm, gate_up).unwrap();
            let h = cpu.linear(&h, gate_up).unwrap();
            let h = cpu.gate(h, down).unwrap();
            let h = cpu.linear(&h, down).unwrap();
            cpu.add(&mut x, &h).unwrap();
        }
        let h = cpu.norm(&x, &self.norm, &self.head).unwrap();
        let logits = cpu.linear(&h, &self.head).unwrap();
        let likeliest = cpu.likeliest(&logits).unwrap();
        (0..step.tokens.len())
            .map(|row| {
                let logits = cpu.logits(&logits, row).unwrap();
                assert_eq!(likeliest[row] as usize, cpu.path.argmax(&logits));
                logits
            })
            .collect()
    }
}

fn tokens(sequence: usize, part: std::ops::Range<usize>) -> Vec<u32> {
    part.map(|i| ((i * 7 + sequence * 13 + i * i) % VOCAB) as u32)
        .collect()
}

/// A step of parts of sequences, each with its blocks.
fn step(parts: &[(usize, std::ops::Range<usize>, [u32; 3])]) -> Step {
    Step {
        tokens: parts
            .iter()
            .flat_map(|(i, part, _)| tokens(*i, part.clone()))
            .collect(),
        spans: parts
            .iter()
            .map(|(_, part, blocks)| Span {
                rows: part.len(),
                start: part.start,
                blocks: blocks.to_vec(),
            })
            .collect(),
        wanted: Vec::new(),
    }
}

const FORMATS: [Format; 3] = [Format::F32, Format::Bf16, Format::Int8];

fn each(test: impl Fn(&mut Cpu, &Model)) {
    for path in paths() {
        for format in FORMATS {
            let mut cpu = Cpu::new(path, &spec(), format, 20, 200, 2).unwrap();
            let model = Model::new(&cpu, &spec());
            test(&mut cpu, &model);
        }
    }
}

#[test]
fn a_step_of_many_sequences_in_pieces_gives_the_bits_of_each_alone() {
    each(|cpu, model| {
        let alone: Vec<_> = (0..3)
            .map(|i| model.step(cpu, &step(&[(i, 0..70, [1, 2, 3])])))
            .collect();
        let (a, b, c) = ([4, 9, 5], [6, 7, 0], [12, 11, 10]);
        let mut found = vec![Vec::new(); 3];
        for parts in [
            vec![(0, 0..40, a), (1, 0..1, b), (2, 0..33, c)],
            vec![(1, 1..2, b), (0, 40..41, a), (2, 33..70, c)],
            vec![(1, 2..69, b), (0, 41..47, a)],
            vec![(0, 47..70, a), (1, 69..70, b)],
        ] {
            let mut logits = model.step(cpu, &step(&parts)).into_iter();
            for (i, part, _) in parts {
                found[i].extend(logits.by_ref().take(part.len()));
            }
        }
        assert!(found == alone, "{} {:?}", cpu.path(), cpu.format);
    });
}

#[test]
fn a_shared_and_a_copied_prefix_give_the_bits_of_an_own_one() {
    each(|cpu, model| {
        // Sequence 0 and another one that has its first 40 tokens and goes on differently.
        let whole = model.step(cpu, &step(&[(0, 0..70, [1, 2, 3])]));
        cpu.copy_block(2, 8).unwrap();
        let shared = model.step(cpu, &step(&[(0, 40..70, [1, 8, 9])]));
        assert!(shared == whole[40..]);
        // What was rejected is written over.
        let other = model.step(cpu, &step(&[(1, 45..70, [1, 8, 9])]));
        assert!(other != whole[45..]);
        let again = model.step(cpu, &step(&[(0, 45..70, [1, 8, 9])]));
        assert!(again == whole[45..]);
    });
}

#[test]
fn number_formats_and_paths_agree_within_their_errors() {
    let logits = |path, format| {
        let mut cpu = Cpu::new(path, &spec(), format, 20, 200, 1).unwrap();
        let model = Model::new(&cpu, &spec());
        model.step(&mut cpu, &step(&[(0, 0..70, [1, 2, 3])]))
    };
    let all = paths();
    let wanted = logits(all[all.len() - 1], Format::F32);
    let scale = wanted
        .iter()
        .flatten()
        .fold(0.0f32, |largest, v| largest.max(v.abs()));
    for path in all {
        for (format, tolerance) in FORMATS.into_iter().zip([1e-5, 0.03, 0.03]) {
            for (found, wanted) in logits(path, format).iter().zip(&wanted) {
                for (found, wanted) in found.iter().zip(wanted) {
                    let off = (found - wanted).abs() / scale;
                    assert!(off < tolerance, "{} {format:?}: {off}", path.name());
                }
            }
        }
    }
}

#[test]
fn rows_turn_by_their_positions() {
    let mut cpu = Cpu::new(paths()[0], &spec(), Format::F32, 20, 200, 1).unwrap();
    // Far, then near: known angles are used again.
    for start in [60, 3] {
        cpu.begin(&step(&[(0, start..start + 2, [1, 2, 3])]))
            .unwrap();
        for row in 0..2 {
            for (i, frequency) in spec().rotary_frequencies().iter().enumerate() {
                let angle = f64::from((start + row) as f32 * frequency);
                let at = row * 12 + i;
                assert_eq!(cpu.turns.cosines[at], angle.cos() as f32);
                assert_eq!(cpu.turns.sines[at], angle.sin() as f32);
            }
        }
        assert_eq!(cpu.turns.sines.len(), 2 * 12);
    }
}

#[test]
fn what_does_not_fit_is_an_error_that_says_so() {
    let mut cpu = Cpu::new(paths()[0], &spec(), Format::Int8, 4, 100, 1).unwrap();
    let mut refused = |step: Step, reason: &str| {
        let text = format!("{:?}", cpu.begin(&step).unwrap_err());
        assert!(text.contains(reason), "{text}");
    };
    refused(step(&[(0, 0..101, [0, 1, 2])]), "of 100 at most");
    refused(
        step(&[(0, 0..97, [0, 1, 2])]),
        "3 blocks of the cache for 97",
    );
    refused(step(&[(0, 0..33, [0, 4, 1])]), "block 4 is beyond the 4");
    refused(
        step(&[(0, 0..33, [0, 1, 2]), (1, 0..9, [1, 2, 3])]),
        "write to block 1",
    );
    refused(step(&[(0, 190..201, [0, 1, 2])]), "position 201 is beyond");
    refused(
        Step {
            tokens: vec![1, 2],
            ..step(&[(0, 0..3, [0, 1, 2])])
        },
        "2 tokens in 3 rows",
    );
    let model = Model::new(&cpu, &spec());
    assert!(cpu.embed(&model.head, &[49, 50]).is_err());
    assert!(cpu.copy_block(0, 4).is_err());
    cpu.begin(&step(&[(0, 0..2, [0, 1, 2])])).unwrap();
    let x = cpu.embed(&model.head, &[49, 3]).unwrap();
    assert!(cpu.linear(&x, &model.layers[0].1).is_err());
    assert!(cpu.norm(&x, &model.head_norms.0, &model.head).is_err());
    assert!(cpu.select(&x, &[1, 2]).is_err());
    assert!(cpu.logits(&x, 2).is_err());
    assert!(cpu.attend(0, x, None).is_err());
    for (heads, kv_heads, head_dim) in [(6, 4, 24), (6, 0, 24), (6, 2, 23), (6, 2, 258), (6, 2, 0)]
    {
        let odd = Spec {
            heads,
            kv_heads,
            head_dim,
            ..spec()
        };
        assert!(Cpu::new(paths()[0], &odd, Format::F32, 4, 100, 1).is_err());
    }
}

#[test]
fn what_is_done_at_once_is_the_same_as_one_after_the_other() {
    // 64 of each are gated at once, 72 are not.
    for (half, precision) in [(64, Asked), (64, Fine), (72, Asked), (72, Fine)] {
        each(|cpu, model| {
            let random = &mut Random::new(3);
            let gate_up = cpu
                .matrix(
                    &[weights(random, half, 48), weights(random, half, 48)],
                    Asked,
                )
                .unwrap();
            let down = cpu.matrix(&[weights(random, 48, half)], precision).unwrap();
            let mut x = cpu.embed(&model.head, &[4, 9, 2, 11]).unwrap();
            let mut y = cpu.embed(&model.head, &[4, 9, 2, 11]).unwrap();
            let h = cpu.linear_gated(&x, &gate_up, &down).unwrap();
            cpu.linear_added(&mut x, &h, &down).unwrap();
            let g = cpu.linear(&y, &gate_up).unwrap();
            let g = cpu.gate(g, &down).unwrap();
            let g = cpu.linear(&g, &down).unwrap();
            cpu.add(&mut y, &g).unwrap();
            assert!(x.values() == y.values());
            if half == 64 {
                assert!(cpu.add(&mut x, &h).is_err());
                assert!(cpu.select(&h, &[0]).is_err());
                assert!(cpu.norm(&h, &vec![1.0; 64], &down).is_err());
            }
        });
    }
}

#[test]
fn rows_selected_are_those_asked_for() {
    let mut cpu = Cpu::new(paths()[0], &spec(), Format::F32, 4, 100, 2).unwrap();
    let model = Model::new(&cpu, &spec());
    let x = cpu.embed(&model.head, &[4, 9, 2]).unwrap();
    let y = cpu.select(&x, &[2, 0]).unwrap();
    assert_eq!((y.count(), y.width()), (2, 48));
    assert_eq!((y.row(0), y.row(1)), (x.row(2), x.row(0)));
}

#[test]
fn in_8_bits_what_is_to_be_fine_has_16_and_an_embedding_in_8_is_refused() {
    let mut cpu = Cpu::new(paths()[0], &spec(), Format::Int8, 4, 100, 1).unwrap();
    let weights = [weights(&mut Random::new(4), 64, 48)];
    let asked = cpu.matrix(&weights, Asked).unwrap();
    let fine = cpu.matrix(&weights, Fine).unwrap();
    let wide = if paths()[0].int8_by_16() {
        Format::Int16
    } else {
        Format::Bf16
    };
    assert_eq!((asked.format(), fine.format()), (Format::Int8, wide));
    assert!(cpu.embed(&asked, &[1]).is_err());
    // Rows packed for the one are packed anew for the other.
    let x = cpu.embed(&fine, &[3, 9]).unwrap();
    let by_asked = cpu.norm(&x, &vec![1.0; 48], &asked).unwrap();
    let by_fine = cpu.norm(&x, &vec![1.0; 48], &fine).unwrap();
    for w in [&asked, &fine] {
        let (a, b) = (
            cpu.linear(&by_asked, w).unwrap(),
            cpu.linear(&by_fine, w).unwrap(),
        );
        assert!(a.values() == b.values());
    }
}

#[test]
fn a_step_tells_its_times_once() {
    let mut cpu = Cpu::new(paths()[0], &spec(), Format::Int8, 4, 100, 1).unwrap();
    let model = Model::new(&cpu, &spec());
    model.step(&mut cpu, &step(&[(0, 0..40, [0, 1, 2])]));
    let times = cpu.times();
    assert!(times.parts().iter().all(|(_, time)| !time.is_zero()));
    assert_eq!(cpu.times(), Times::default());
}

#[test]
fn a_block_takes_what_the_budget_is_told() {
    // Two layers, two heads, keys and values, 32 positions of 24 values in 32 places.
    let values = 2 * 2 * 2 * 32 * 32;
    assert_eq!(Cpu::bytes_per_block(&spec(), Format::F32), values * 4);
    assert_eq!(Cpu::bytes_per_block(&spec(), Format::Int8), values * 2);
}
