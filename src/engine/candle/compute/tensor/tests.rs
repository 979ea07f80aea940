use super::*;
use crate::engine::candle::made;

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
