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
