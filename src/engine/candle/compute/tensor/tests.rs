use super::*;
use crate::engine::candle::made;
use crate::engine::candle::step::Span;

#[test]
fn the_likeliest_of_equal_logits_is_the_first() {
    let spec = made::small();
    let mut compute = TensorCompute::new(&spec, &Device::Cpu, DType::BF16, 1, 32).unwrap();
    let mut logits = vec![-1.0f32; 3 * spec.vocab];
    // 3.0 and 3.001 are one number in 16 bits.
    for (row, highest) in [(0, [7, 299]), (1, [0, 1]), (2, [298, 299])] {
        logits[row * spec.vocab + highest[0]] = 3.0;
        logits[row * spec.vocab + highest[1]] = 3.001;
    }
    let logits = Tensor::from_vec(logits, (3, spec.vocab), &Device::Cpu).unwrap();
    let likeliest = |compute: &mut TensorCompute, dtype| {
        let logits = logits.to_dtype(dtype).unwrap();
        compute.likeliest(&logits).unwrap()
    };
    assert_eq!(likeliest(&mut compute, DType::BF16), [7, 0, 298]);
    assert_eq!(likeliest(&mut compute, DType::F32), [299, 1, 299]);
}

/// candle's argmax on a GPU takes any of equal values, which on a processor it does not: what it is asked about must have none.
#[test]
fn argmax_is_asked_about_rows_whose_highest_value_is_there_once() {
    let spec = made::small();
    let compute = TensorCompute::new(&spec, &Device::Cpu, DType::F32, 1, 32).unwrap();
    let mut logits = vec![-1.0f32; 2 * spec.vocab];
    for at in [7, 8, 299, spec.vocab, spec.vocab + 299] {
        logits[at] = 3.0;
    }
    let logits = Tensor::from_vec(logits, (2, spec.vocab), &Device::Cpu).unwrap();
    let highest = logits.max_keepdim(D::Minus1).unwrap();
    let ranked = compute.ranked(&logits, &highest).unwrap();
    for (row, first) in ranked.to_vec2::<f32>().unwrap().iter().zip([7, 0]) {
        let most = row.iter().copied().fold(f32::MIN, f32::max);
        let places = row.iter().enumerate().filter(|(_, x)| **x == most);
        assert_eq!(places.map(|(at, _)| at).collect::<Vec<_>>(), [first]);
    }
}

#[test]
fn a_row_without_a_finite_highest_logit_has_no_likeliest_token() {
    let spec = made::small();
    let mut compute = TensorCompute::new(&spec, &Device::Cpu, DType::F32, 1, 32).unwrap();
    let mut logits = vec![f32::NAN; spec.vocab];
    logits.extend(vec![f32::NEG_INFINITY; spec.vocab]);
    logits.extend(vec![1.0; 3 * spec.vocab]);
    logits[2 * spec.vocab + 7] = f32::INFINITY;
    logits[3 * spec.vocab + 9] = 2.0;
    let logits = Tensor::from_vec(logits, (5, spec.vocab), &Device::Cpu).unwrap();
    assert_eq!(
        compute.likeliest(&logits).unwrap(),
        [NOTHING, NOTHING, NOTHING, 9, 0]
    );
}

#[test]
fn what_lies_beyond_the_context_or_the_cache_is_refused_before_a_device_could_look_there() {
    let spec = made::small();
    // Two blocks, and 40 positions of a context: less than the blocks have.
    let mut compute = TensorCompute::new(&spec, &Device::Cpu, DType::F32, 2, 40).unwrap();
    let mut begin = |start, rows, blocks: &[u32]| {
        let step = Step {
            tokens: vec![1; rows],
            spans: vec![Span {
                rows,
                start,
                blocks: blocks.to_vec(),
            }],
            wanted: Vec::new(),
        };
        compute.begin(&step).map_err(|e| e.to_string())
    };
    let refused = |said: std::result::Result<(), String>| {
        let said = said.unwrap_err();
        assert!(
            said.contains("a position beyond the 40 of the model, or a block beyond the cache"),
            "{said}"
        );
    };
    assert_eq!(begin(0, 40, &[0, 1]), Ok(()));
    assert_eq!(begin(39, 1, &[1, 0]), Ok(()));
    refused(begin(0, 41, &[0, 1]));
    refused(begin(40, 1, &[0, 1]));
    refused(begin(0, 1, &[2]));
    // Also where nothing is written to that block yet.
    refused(begin(0, 1, &[0, 2]));
}

/// The attention of a step's spans (start, rows, blocks), whose queries, keys and values are `at` their row.
fn attended(
    compute: &mut TensorCompute,
    spans: &[(usize, usize, &[u32])],
    at: impl Fn(usize) -> f32,
) -> Vec<Vec<f32>> {
    let spec = made::small();
    let rows = spans.iter().map(|span| span.1).sum();
    compute
        .begin(&Step {
            tokens: vec![1; rows],
            spans: spans
                .iter()
                .map(|&(start, rows, blocks)| Span {
                    rows,
                    start,
                    blocks: blocks.to_vec(),
                })
                .collect(),
            wanted: Vec::new(),
        })
        .unwrap();
    let width = (spec.heads + 2 * spec.kv_heads) * spec.head_dim;
    let values = (0..rows).flat_map(|row| (0..width).map(move |i| (row, i)));
    let values = values.map(|(row, i)| at(row) * ((i % 7) as f32 - 3.0));
    let qkv = Tensor::from_vec(values.collect(), (rows, width), &Device::Cpu).unwrap();
    let qkv = qkv.to_dtype(compute.dtype).unwrap();
    let out = compute.attend(0, qkv, None).unwrap();
    out.to_dtype(DType::F32).unwrap().to_vec2().unwrap()
}

#[test]
fn no_numbers_reach_neither_another_sequence_nor_the_rows_before_them() {
    for dtype in [DType::F32, DType::BF16] {
        let new = || TensorCompute::new(&made::small(), &Device::Cpu, dtype, 4, 128).unwrap();
        // Block 0 is the one whose places stand for none.
        let (mut spoilt, mut clean) = (new(), new());
        let lost = attended(&mut spoilt, &[(0, 3, &[0])], |_| f32::NAN);
        assert!(lost.iter().flatten().all(|v| v.is_nan()), "{dtype:?}");
        // Side by side, the second one padded.
        let two: [(usize, usize, &[u32]); 2] = [(0, 8, &[1]), (0, 5, &[2])];
        let wanted = attended(&mut clean, &two, |row| row as f32 / 8.0);
        assert!(wanted.iter().flatten().all(|v| v.is_finite()));
        assert_eq!(
            attended(&mut spoilt, &two, |row| row as f32 / 8.0),
            wanted,
            "{dtype:?}"
        );
        // A draft whose last tokens are no numbers.
        let wanted = attended(&mut clean, &[(0, 4, &[3])], |row| row as f32);
        for bad in [f32::NAN, f32::INFINITY] {
            let found = attended(&mut spoilt, &[(0, 6, &[3])], |row| {
                if row < 4 { row as f32 } else { bad }
            });
            assert_eq!(found[..4], wanted, "{dtype:?} {bad}");
            assert!(found[4..].iter().flatten().all(|v| v.is_nan()), "{bad}");
        }
    }
}

#[test]
fn a_claimed_context_takes_no_more_than_the_cache_holds() {
    let claimed = 1 << 22;
    let compute = TensorCompute::new(&made::small(), &Device::Cpu, DType::F32, 2, claimed).unwrap();
    assert_eq!(compute.cosines.dim(0).unwrap(), 2 * BLOCK);
}

#[test]
fn spans_go_together_up_to_a_power_of_the_spread() {
    let device = Device::Cpu;
    let blocks: Vec<u32> = (0..64).collect();
    let rows = [1, 2, 3, 5, 16, 17, 33, 256, 257, 0];
    let step = Step {
        tokens: vec![1; rows.iter().sum()],
        spans: rows
            .iter()
            .map(|&rows| Span {
                rows,
                start: 0,
                blocks: blocks.clone(),
            })
            .collect(),
        wanted: Vec::new(),
    };
    let groups = |spread| {
        let (groups, order) = groups::of(&step, 1, spread, &device).unwrap();
        // Each row stands somewhere, and none where another one does.
        let mut places = order.clone();
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), step.tokens.len());
        let sizes = groups.iter().map(|g| (g.sequences, g.rows));
        sizes.collect::<Vec<_>>()
    };
    let by_two = [
        (2, 2),
        (1, 3),
        (1, 5),
        (1, 16),
        (1, 17),
        (1, 33),
        (1, 256),
        (1, 257),
    ];
    assert_eq!(groups(2), by_two);
    assert_eq!(groups(16), [(5, 16), (3, 256), (1, 257)]);
}

#[test]
fn a_group_of_several_spans_has_no_more_scores_than_a_gpu_has_room_for() {
    // So long that three of sixteen rows are too many for one group.
    let long = groups::MOST_SCORES / 32 - 16;
    let blocks: Vec<u32> = (0..).take(long / BLOCK + 2).collect();
    let lengths = [(16, long), (16, long), (16, long), (1, 0), (17, 0)];
    let step = Step {
        tokens: vec![1; lengths.iter().map(|(rows, _)| rows).sum()],
        spans: lengths
            .iter()
            .map(|&(rows, start)| Span {
                rows,
                start,
                blocks: blocks.clone(),
            })
            .collect(),
        wanted: Vec::new(),
    };
    let (groups, order) = groups::of(&step, 1, 16, &Device::Cpu).unwrap();
    let sizes = groups.iter().map(|g| (g.sequences, g.rows, g.length));
    assert_eq!(
        sizes.collect::<Vec<_>>(),
        [(2, 16, long + 16), (2, 16, long + 16), (1, 17, 17)]
    );
    let places: Vec<u32> = (0..49).chain(64..81).collect();
    assert_eq!(order, places);
}

#[test]
fn attention_beyond_what_an_index_can_name_is_refused_with_the_setting_that_makes_it_so() {
    let spec = made::small();
    let rows = 4096;
    let length = (1 << 31) / spec.heads / rows + 1;
    let blocks = length / BLOCK + 1;
    let mut compute = TensorCompute::new(&spec, &Device::Cpu, DType::BF16, blocks, length).unwrap();
    let step = Step {
        tokens: vec![1; rows],
        spans: vec![Span {
            rows,
            start: length - rows,
            blocks: (0..).take(blocks).collect(),
        }],
        wanted: Vec::new(),
    };
    let error = compute.begin(&step).unwrap_err().to_string();
    assert!(
        error.starts_with("engine.step_tokens: 4096 tokens"),
        "{error}"
    );
}
