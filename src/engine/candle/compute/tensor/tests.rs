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
