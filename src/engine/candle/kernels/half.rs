//! Sixteen-bit floats, one at a time. The paths have loops of their own for many.

/// The nearest bfloat, ties to even. NaN stays NaN.
pub(crate) fn bf16_from(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return ((bits >> 16) | 0x40) as u16;
    }
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// The float that is this bfloat.
pub(crate) fn bf16_to(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}

/// The nearest half-precision float, ties to even. What is too large becomes infinite, NaN stays NaN.
pub(crate) fn f16_from(x: f32) -> u16 {
    let bits = x.to_bits();
    let sign = ((bits >> 16) & 0x8000) as u16;
    let magnitude = bits & 0x7fff_ffff;
    let half = if magnitude > 0x7f80_0000 {
        0x7e00
    } else if magnitude >= 0x477f_f000 {
        // From 65520 on the nearest is infinity.
        0x7c00
    } else if magnitude < 0x3880_0000 {
        // Below the smallest normal one: the unit is 2^-24, and adding 0.5 has the processor round to it.
        (f32::from_bits(magnitude) + 0.5).to_bits() - 0.5f32.to_bits()
    } else {
        let rebased = magnitude - (112 << 23);
        (rebased + 0xfff + ((rebased >> 13) & 1)) >> 13
    };
    sign | half as u16
}

/// The float that is this half-precision float.
#[inline(always)]
#[cfg(test)]
pub(crate) fn f16_to(x: u16) -> f32 {
    let sign = u32::from(x & 0x8000) << 16;
    let magnitude = u32::from(x & 0x7fff);
    let float = if magnitude >= 0x7c00 {
        f32::from_bits((magnitude << 13) | 0x7f80_0000)
    } else {
        // The exponent is put right by a multiplication, which is exact for normal and for subnormal ones.
        f32::from_bits(magnitude << 13) * f32::from_bits(0x7780_0000)
    };
    f32::from_bits(float.to_bits() | sign)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_comes_back_from_its_float() {
        for bits in 0..=u16::MAX {
            let float = f16_to(bits);
            if float.is_nan() {
                assert!((bits & 0x7fff) > 0x7c00);
                assert!(f16_to(f16_from(float)).is_nan());
            } else {
                assert_eq!(f16_from(float), bits, "{float}");
            }
        }
    }

    #[test]
    fn a_float_between_two_halves_becomes_the_nearer_one_and_ties_go_to_even() {
        for bits in 0..0x7bffu16 {
            let (low, high) = (f64::from(f16_to(bits)), f64::from(f16_to(bits + 1)));
            let middle = f64::midpoint(low, high) as f32;
            let even = if bits % 2 == 0 { bits } else { bits + 1 };
            assert_eq!(f16_from(middle), even);
            assert_eq!(f16_from(middle.next_down()), bits);
            assert_eq!(f16_from(middle.next_up()), bits + 1);
            assert_eq!(f16_from(-middle), even | 0x8000);
        }
        assert_eq!(f16_from(65519.996), 0x7bff);
        assert_eq!(f16_from(65520.0), 0x7c00);
        assert_eq!(f16_from(f32::INFINITY), 0x7c00);
        assert_eq!(f16_from(f32::from_bits(1)), 0);
    }

    #[test]
    fn a_float_becomes_the_nearest_bfloat_and_ties_go_to_even() {
        for (float, bits) in [
            (1.0, 0x3f80),
            (f32::from_bits(0x3f80_8000), 0x3f80),
            (f32::from_bits(0x3f81_8000), 0x3f82),
            (f32::from_bits(0x3f80_8001), 0x3f81),
            (f32::INFINITY, 0x7f80),
            (f32::MAX, 0x7f80),
            (-0.0, 0x8000),
        ] {
            assert_eq!(bf16_from(float), bits, "{float}");
        }
        assert!(bf16_to(bf16_from(f32::NAN)).is_nan());
        assert!(bf16_to(bf16_from(f32::from_bits(0x7f80_0001))).is_nan());
    }
}
