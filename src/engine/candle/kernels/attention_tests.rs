//! Attention on every path against a plain one in f64.

use proptest::prelude::*;

use super::super::random::Random;
use super::super::{half, paths};
use super::*;

/// Sequences, each with the queries, keys and values of all its positions, and its blocks.
struct Case {
    heads: Heads,
    halves: bool,
    sequences: Vec<(Vec<f32>, Vec<u32>)>,
    norms: Option<(Vec<f32>, Vec<f32>)>,
}

const EPSILON: f32 = 1e-5;
const BLOCKS: usize = 40;

impl Case {
    fn new(
        heads: Heads,
        halves: bool,
        norms: bool,
        lengths: &[usize],
        random: &mut Random,
    ) -> Self {
        // Blocks in a random order.
        let mut blocks: Vec<u32> = (0..BLOCKS as u32).collect();
        for i in (1..BLOCKS).rev() {
            blocks.swap(i, random.below(i + 1));
        }
        Self {
            heads,
            halves,
            norms: norms.then(|| {
                let mut weights = || {
                    (0..heads.dim)
                        .map(|_| 1.0 + 0.2 * random.normal())
                        .collect()
                };
                (weights(), weights())
            }),
            sequences: lengths
                .iter()
                .map(|&len| {
                    let rest = blocks.split_off(blocks.len() - len.div_ceil(POSITIONS));
                    (random.normals(len * heads.width()), rest)
                })
                .collect(),
        }
    }

    /// Cosines and sines of a position: any angles will do.
    fn angles(&self, position: usize) -> (Vec<f32>, Vec<f32>) {
        let angles = (0..self.heads.dim / 2).map(|i| position as f32 * 0.8f32.powi(i as i32));
        (
            angles.clone().map(f32::cos).collect(),
            angles.map(f32::sin).collect(),
        )
    }

    /// Everything computed in steps: in each, so many rows of each sequence.
    fn run(
        &self,
        path: &dyn Path,
        threads: usize,
        steps: &[Vec<usize>],
        dirt: f32,
    ) -> Vec<Vec<f32>> {
        let pool = Pool::new(threads).unwrap();
        let mut cache = Cache::new(self.heads, 2, BLOCKS, self.halves).unwrap();
        let mut attention = Attention::default();
        let mut done = vec![0; self.sequences.len()];
        let mut results = vec![Vec::new(); self.sequences.len()];
        for step in steps {
            let mut owned = Vec::new();
            for ((_, blocks), &done) in self.sequences.iter().zip(&done) {
                let place = |at: usize| (blocks[at / POSITIONS] as usize, at % POSITIONS);
                owned.extend((0..done).map(place));
            }
            dirty(&mut cache, path, dirt, &owned);
            let (mut qkv, mut cosines, mut sines) = (Vec::new(), Vec::new(), Vec::new());
            let (mut runs, mut row) = (Vec::new(), 0);
            for (i, &rows) in step.iter().enumerate() {
                let width = self.heads.width();
                let (values, blocks) = &self.sequences[i];
                qkv.extend_from_slice(&values[done[i] * width..(done[i] + rows) * width]);
                for position in done[i]..done[i] + rows {
                    let (c, s) = self.angles(position);
                    cosines.extend(c);
                    sines.extend(s);
                }
                runs.push(Run {
                    row,
                    rows,
                    start: done[i],
                    blocks: blocks.clone(),
                });
                row += rows;
            }
            attention.begin(&cache, path.rows(), runs).unwrap();
            let out_width = self.heads.queries * self.heads.dim;
            let mut out = vec![f32::NAN; row * out_width];
            let inputs = Inputs {
                qkv: &qkv,
                norms: self.norms.as_ref().map(|(q, k)| (&q[..], &k[..], EPSILON)),
                cosines: &cosines,
                sines: &sines,
            };
            attention.attend(path, &pool, &mut cache, 1, &inputs, &mut out);
            let mut rest = &out[..];
            for (i, &rows) in step.iter().enumerate() {
                results[i].extend_from_slice(&rest[..rows * out_width]);
                rest = &rest[rows * out_width..];
                done[i] += rows;
            }
        }
        results
    }

    /// The same, plainly.
    fn plain(&self) -> Vec<Vec<f64>> {
        let Heads { queries, kv, dim } = self.heads;
        let round = |x: f64| {
            if self.halves {
                f64::from(half::f16_to(half::f16_from(x as f32)))
            } else {
                x
            }
        };
        self.sequences
            .iter()
            .map(|(values, _)| {
                let rows: Vec<_> = values.chunks(self.heads.width()).collect();
                let head = |row: usize, number: usize| -> Vec<f64> {
                    let x: Vec<f64> = rows[row][number * dim..][..dim]
                        .iter()
                        .map(|&x| f64::from(x))
                        .collect();
                    let weight = self
                        .norms
                        .as_ref()
                        .map(|(q, k)| if number < queries { q } else { k });
                    let x: Vec<f64> = match weight {
                        Some(weight) => {
                            let mean = x.iter().map(|x| x * x).sum::<f64>() / dim as f64;
                            let factor = 1.0 / (mean + f64::from(EPSILON)).sqrt();
                            x.iter()
                                .zip(weight)
                                .map(|(x, &w)| x * factor * f64::from(w))
                                .collect()
                        }
                        None => x,
                    };
                    let (c, s) = self.angles(row);
                    let half = dim / 2;
                    (0..dim)
                        .map(|i| {
                            let (c, s) = (f64::from(c[i % half]), f64::from(s[i % half]));
                            if i < half {
                                x[i] * c - x[i + half] * s
                            } else {
                                x[i] * c + x[i - half] * s
                            }
                        })
                        .collect()
                };
                let mut out = Vec::new();
                for row in 0..rows.len() {
                    for number in 0..queries {
                        let kv_head = number / (queries / kv);
                        let query = head(row, number);
                        let scores: Vec<f64> = (0..=row)
                            .map(|at| {
                                let key = head(at, queries + kv_head);
                                query
                                    .iter()
                                    .zip(&key)
                                    .map(|(q, &k)| q * round(k))
                                    .sum::<f64>()
                                    / (dim as f64).sqrt()
                            })
                            .collect();
                        let largest = scores.iter().copied().fold(f64::MIN, f64::max);
                        let total: f64 = scores.iter().map(|s| (s - largest).exp()).sum();
                        for i in 0..dim {
                            out.push(
                                scores
                                    .iter()
                                    .enumerate()
                                    .map(|(at, s)| {
                                        let v = rows[at][(queries + kv + kv_head) * dim + i];
                                        (s - largest).exp() / total * round(f64::from(v))
                                    })
                                    .sum(),
                            );
                        }
                    }
                }
                out
            })
            .collect()
    }
}

/// Leaves something behind at every place that is not owned.
fn dirty(cache: &mut Cache, path: &dyn Path, dirt: f32, owned: &[(usize, usize)]) {
    let heads = cache.heads();
    let (keys, values) = (vec![dirt; heads.dim], vec![dirt; heads.dim]);
    for layer in 0..2 {
        let writing = cache.writing(layer);
        for place in 0..BLOCKS * POSITIONS {
            for head in 0..heads.kv {
                let place = (place / POSITIONS, place % POSITIONS);
                if owned.contains(&place) {
                    continue;
                }
                // SAFETY: one thread.
                unsafe { writing.write(path, place, head, &keys, &values) };
            }
        }
    }
}

fn near(found: &[Vec<f32>], wanted: &[Vec<f64>], tolerance: f64) {
    assert_eq!(found.len(), wanted.len());
    for (found, wanted) in found.iter().zip(wanted) {
        assert_eq!(found.len(), wanted.len());
        for (i, (&found, wanted)) in found.iter().zip(wanted).enumerate() {
            let off = (f64::from(found) - wanted).abs();
            assert!(off <= tolerance, "at {i}: {found}, not {wanted}");
        }
    }
}

/// All rows of all sequences in one step.
fn at_once(lengths: &[usize]) -> Vec<Vec<usize>> {
    vec![lengths.to_vec()]
}

#[test]
fn ragged_sequences_are_attended_as_if_each_were_alone_on_every_path() {
    let lengths = [1, 31, 32, 33, 70, 2, 100];
    for path in paths() {
        for (queries, kv, dim) in [
            (9, 3, 64),
            (4, 4, 8),
            (8, 2, 128),
            (5, 1, 24),
            (12, 1, 16),
            (2, 1, 256),
            (3, 3, 80),
        ] {
            let heads = Heads { queries, kv, dim };
            for halves in [false, true] {
                let case = Case::new(
                    heads,
                    halves,
                    dim == 128,
                    &lengths,
                    &mut Random::new(dim as u64),
                );
                // A rotated key may be rounded to the half-precision float beside the one of the plain computation.
                let tolerance = if halves { 2e-3 } else { 2e-5 };
                near(
                    &case.run(path, 2, &at_once(&lengths), 0.0),
                    &case.plain(),
                    tolerance,
                );
            }
        }
    }
}

#[test]
fn chunks_and_single_rows_give_the_same_bits_as_all_at_once() {
    let lengths = [70, 45, 33];
    let heads = Heads {
        queries: 6,
        kv: 2,
        dim: 32,
    };
    for path in paths() {
        for halves in [false, true] {
            let case = Case::new(heads, halves, true, &lengths, &mut Random::new(7));
            let once = case.run(path, 2, &at_once(&lengths), 0.0);
            let mut steps = vec![vec![64, 0, 1], vec![5, 40, 31], vec![0, 3, 0]];
            steps.extend([vec![1, 1, 1], vec![0, 1, 0]]);
            assert!(case.run(path, 3, &steps, 0.0) == once, "{}", path.name());
        }
    }
}

#[test]
fn what_a_former_owner_left_in_a_block_counts_nothing() {
    let lengths = [40, 3];
    let heads = Heads {
        queries: 4,
        kv: 2,
        dim: 40,
    };
    for path in paths() {
        for halves in [false, true] {
            let case = Case::new(heads, halves, false, &lengths, &mut Random::new(8));
            let clean = case.run(path, 2, &at_once(&lengths), 0.0);
            for dirt in [f32::NAN, f32::INFINITY, 1e9] {
                let found = case.run(path, 2, &at_once(&lengths), dirt);
                assert!(found == clean, "{} {dirt}", path.name());
                // In the middle of a block too: behind a copied part, or where a draft was rejected.
                let steps = [vec![10, 1], vec![1, 1], vec![29, 1]];
                let found = case.run(path, 2, &steps, dirt);
                assert!(found == clean, "{} {dirt} in steps", path.name());
            }
        }
    }
}

#[test]
fn values_that_are_no_numbers_end_in_no_numbers_and_only_in_their_sequence() {
    let lengths = [40, 40];
    let heads = Heads {
        queries: 4,
        kv: 2,
        dim: 16,
    };
    for path in paths() {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut case = Case::new(heads, true, false, &lengths, &mut Random::new(9));
            let sound = case.run(path, 2, &at_once(&lengths), 0.0);
            let width = heads.width();
            case.sequences[0].0[10 * width..11 * width].fill(bad);
            let found = case.run(path, 2, &at_once(&lengths), 0.0);
            let before = 10 * heads.queries * heads.dim;
            assert!(
                found[0][before..before + 16]
                    .iter()
                    .all(|value| value.is_nan())
            );
            assert!(found[1] == sound[1]);
        }
    }
}

#[test]
fn values_in_a_cache_are_finite_whatever_was_written() {
    let heads = Heads {
        queries: 2,
        kv: 1,
        dim: 40,
    };
    for path in paths() {
        for halves in [false, true] {
            let mut cache = Cache::new(heads, 1, 1, halves).unwrap();
            for (position, bad) in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30, -7e4]
                .into_iter()
                .enumerate()
            {
                let mut values = [1.0; 40];
                values[position * 7] = bad;
                // SAFETY: one thread.
                unsafe {
                    cache
                        .writing(0)
                        .write(path, (0, position), 0, &[1.0; 40], &values)
                };
            }
            for tile in 0..heads.tiles() {
                for line in cache.values(0, 0, 0, tile) {
                    let finite = if halves {
                        line.halves().iter().all(|&v| half::f16_to(v).is_finite())
                    } else {
                        line.floats().iter().all(|v| v.is_finite())
                    };
                    assert!(finite, "{} {halves}", path.name());
                }
            }
        }
    }
}

#[test]
fn no_numbers_of_one_step_do_not_reach_another_sequence_in_a_later_one() {
    let lengths = [11, 23];
    for path in paths() {
        // Heads that do not fill their lines, whose rest no step writes.
        for dim in [24, 40, 80] {
            let heads = Heads {
                queries: 4,
                kv: 2,
                dim,
            };
            let steps = [vec![11, 3], vec![0, 19], vec![0, 1]];
            let mut case = Case::new(heads, false, false, &lengths, &mut Random::new(11));
            let sound = case.run(path, 2, &steps, 0.0);
            case.sequences[0].0.fill(f32::NAN);
            let found = case.run(path, 2, &steps, 0.0);
            assert!(found[1] == sound[1], "{} {dim}", path.name());
        }
    }
}

#[test]
fn values_that_are_no_numbers_make_whoever_attends_to_them_no_number() {
    let lengths = [70];
    let heads = Heads {
        queries: 2,
        kv: 1,
        dim: 16,
    };
    let width = heads.width();
    for path in paths() {
        for halves in [false, true] {
            for bad in 0..lengths[0] {
                let mut case = Case::new(heads, halves, false, &lengths, &mut Random::new(12));
                // Of one position the values alone, behind the queries and the keys.
                case.sequences[0].0[bad * width + 48..(bad + 1) * width].fill(f32::NAN);
                let found = case.run(path, 1, &at_once(&lengths), 0.0);
                for (row, out) in found[0].chunks(32).enumerate() {
                    let as_it_should = out.iter().all(|v| v.is_nan() == (row >= bad));
                    assert!(as_it_should, "{} {bad} {row}", path.name());
                }
            }
        }
    }
}

#[test]
fn scores_far_apart_neither_overflow_nor_vanish() {
    let lengths = [90];
    let heads = Heads {
        queries: 2,
        kv: 1,
        dim: 16,
    };
    for path in paths() {
        let mut case = Case::new(heads, false, false, &lengths, &mut Random::new(10));
        case.sequences[0]
            .0
            .iter_mut()
            .for_each(|value| *value *= 30.0);
        // Scores of some thousands are off by some 1e-4, and so are the weights.
        near(
            &case.run(path, 1, &at_once(&lengths), 0.0),
            &case.plain(),
            0.1,
        );
    }
}

#[test]
fn blocks_that_are_missing_or_written_twice_are_refused_and_named() {
    let heads = Heads {
        queries: 1,
        kv: 1,
        dim: 8,
    };
    let cache = Cache::new(heads, 1, 4, true).unwrap();
    let begin = |runs: &[(usize, [u32; 2])]| {
        let runs = runs.iter().enumerate();
        let runs = runs.map(|(row, &(start, blocks))| Run {
            row,
            rows: 1,
            start,
            blocks: blocks.into(),
        });
        Attention::default().begin(&cache, 4, runs.collect())
    };
    // What is only read may be shared.
    assert_eq!(begin(&[(40, [0, 1]), (40, [0, 2])]), Ok(()));
    assert_eq!(
        begin(&[(40, [0, 1]), (40, [2, 1])]),
        Err(Fault::Shared { block: 1 })
    );
    assert_eq!(
        begin(&[(64, [0, 1])]),
        Err(Fault::Blocks {
            blocks: 2,
            positions: 65
        })
    );
    assert_eq!(
        begin(&[(40, [4, 1])]),
        Err(Fault::Beyond {
            block: 4,
            blocks: 4
        })
    );
}

#[test]
fn a_copied_block_is_the_same_in_every_layer() {
    let heads = Heads {
        queries: 1,
        kv: 2,
        dim: 40,
    };
    for halves in [false, true] {
        let mut cache = Cache::new(heads, 2, BLOCKS, halves).unwrap();
        dirty(&mut cache, paths()[0], 3.0, &[]);
        let (keys, values) = (vec![5.0; 40], vec![7.0; 40]);
        for layer in 0..2 {
            // SAFETY: one thread.
            unsafe {
                cache
                    .writing(layer)
                    .write(paths()[0], (3, 9), 1, &keys, &values)
            };
        }
        cache.copy(3, 8);
        for layer in 0..2 {
            for head in 0..2 {
                assert_eq!(cache.keys(layer, 3, head), cache.keys(layer, 8, head));
                assert_eq!(
                    cache.values(layer, 3, head, 1),
                    cache.values(layer, 8, head, 1)
                );
            }
            assert_ne!(cache.keys(layer, 8, 1), cache.keys(layer, 9, 1));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn attention_is_right_whatever_the_sizes(
        kv in 1usize..4, group in 1usize..6, dim in 1usize..9, lengths in prop::collection::vec(1usize..80, 1..6),
        cut in 0usize..80, halves: bool, norms: bool, seed: u64,
    ) {
        let heads = Heads { queries: kv * group, kv, dim: dim * 8 };
        let case = Case::new(heads, halves, norms, &lengths, &mut Random::new(seed));
        let steps: Vec<Vec<usize>> = vec![
            lengths.iter().map(|&len| len.min(cut)).collect(),
            lengths.iter().map(|&len| len - len.min(cut)).collect(),
        ];
        let wanted = case.plain();
        for path in paths() {
            near(&case.run(path, 2, &steps, 0.0), &wanted, if halves { 4e-3 } else { 2e-5 });
        }
    }
}
