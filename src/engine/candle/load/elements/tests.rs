//! Blocks of random bytes, read by a second decoder that is written from ggml's description of its formats alone: where element `i` of
//! a block has its bits. candle's own quantizer and reader could be wrong in the same way.

use std::io::Cursor;

use super::*;

/// A 16-bit float, by IEEE 754.
fn half(bytes: &[u8]) -> f64 {
    let bits = u16::from_le_bytes([bytes[0], bytes[1]]);
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
    let size = match exponent {
        0 => fraction * 2f64.powi(-24),
        _ => (1024.0 + fraction) * 2f64.powi(exponent - 25),
    };
    if bits >> 15 == 1 { -size } else { size }
}

fn nibble(byte: u8, high: bool) -> u8 {
    if high { byte >> 4 } else { byte & 15 }
}

/// Scale and minimum of the `j`th 32 elements of a `_K` block: six bits each in twelve bytes.
fn scale_and_min(packed: &[u8], j: usize) -> (f64, f64) {
    let (scale, min) = if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        (
            packed[j + 4] & 15 | packed[j - 4] >> 6 << 4,
            packed[j + 4] >> 4 | packed[j] >> 6 << 4,
        )
    };
    (scale.into(), min.into())
}

/// Element `i` of a block, and what is added up for it (rounding goes with that).
fn element(kind: Elements, block: &[u8], i: usize) -> [f64; 2] {
    let sub = i / 32;
    match kind {
        Elements::F32 => [f32::from_le_bytes(block.try_into().unwrap()).into(), 0.0],
        Elements::F16 => [half(block), 0.0],
        Elements::Bf16 => [
            f32::from_bits(u32::from(block[1]) << 24 | u32::from(block[0]) << 16).into(),
            0.0,
        ],
        Elements::Blocks(GgmlDType::Q8_0) => {
            [half(block) * f64::from(block[2 + i].cast_signed()), 0.0]
        }
        Elements::Blocks(GgmlDType::Q4_0) => {
            let q = nibble(block[2 + i % 16], i >= 16);
            [half(block) * (f64::from(q) - 8.0), 0.0]
        }
        Elements::Blocks(GgmlDType::Q4_1) => {
            let q = nibble(block[4 + i % 16], i >= 16);
            [half(block) * f64::from(q), half(&block[2..])]
        }
        Elements::Blocks(GgmlDType::Q4K) => {
            let (scale, min) = scale_and_min(&block[4..16], sub);
            let q = nibble(block[16 + i / 64 * 32 + i % 32], sub % 2 == 1);
            [half(block) * scale * f64::from(q), -half(&block[2..]) * min]
        }
        Elements::Blocks(GgmlDType::Q5K) => {
            let (scale, min) = scale_and_min(&block[4..16], sub);
            let fifth = block[16 + i % 32] >> sub & 1;
            let q = nibble(block[48 + i / 64 * 32 + i % 32], sub % 2 == 1) + 16 * fifth;
            [half(block) * scale * f64::from(q), -half(&block[2..]) * min]
        }
        Elements::Blocks(GgmlDType::Q6K) => {
            // Two halves of 128; in each, four quarters share 32 bytes of upper bits, two bits a quarter.
            let (part, quarter, l) = (i / 128, i % 128 / 32, i % 32);
            let low = nibble(block[part * 64 + quarter % 2 * 32 + l], quarter >= 2);
            let upper = block[128 + part * 32 + l] >> (2 * quarter) & 3;
            let scale = block[192 + i / 16].cast_signed();
            let q = f64::from(low + 16 * upper) - 32.0;
            [half(&block[208..]) * f64::from(scale) * q, 0.0]
        }
        Elements::Blocks(other) => panic!("{other:?}"),
    }
}

/// Where a block has its 16-bit floats, which must be finite.
fn halves(kind: Elements) -> &'static [usize] {
    match kind {
        Elements::F32 => &[2],
        Elements::F16 | Elements::Bf16 | Elements::Blocks(GgmlDType::Q8_0 | GgmlDType::Q4_0) => {
            &[0]
        }
        Elements::Blocks(GgmlDType::Q6K) => &[208],
        Elements::Blocks(_) => &[0, 2],
    }
}

#[test]
fn every_format_reads_as_ggml_describes_it() {
    let mut rng = fastrand::Rng::with_seed(7);
    for (kind, numbers, bytes) in [
        (Elements::F32, 1, 4),
        (Elements::F16, 1, 2),
        (Elements::Bf16, 1, 2),
        (Elements::Blocks(GgmlDType::Q8_0), 32, 34),
        (Elements::Blocks(GgmlDType::Q4_0), 32, 18),
        (Elements::Blocks(GgmlDType::Q4_1), 32, 20),
        (Elements::Blocks(GgmlDType::Q4K), 256, 144),
        (Elements::Blocks(GgmlDType::Q5K), 256, 176),
        (Elements::Blocks(GgmlDType::Q6K), 256, 210),
    ] {
        assert_eq!(kind.block(), (numbers, bytes), "{kind:?}");
        let blocks = 2000;
        let mut raw: Vec<u8> = (0..blocks * bytes).map(|_| rng.u8(..)).collect();
        for block in raw.chunks_mut(bytes) {
            for at in halves(kind) {
                // Not all ones in the exponent, of any of the float formats.
                block[at + 1] &= 0b1011_1111;
            }
        }
        let mut source = Cursor::new(raw.clone());
        let found = kind.read(&mut source, 0, blocks * numbers).unwrap();
        let wrong = |other: usize| {
            let numbers = found.iter().enumerate().filter(|(at, found)| {
                let block = &raw[at / numbers * bytes..][..bytes];
                let parts = element(kind, block, (at % numbers) ^ other);
                let most = 1e-6 * (parts[0].abs() + parts[1].abs());
                (parts[0] + parts[1] - f64::from(**found)).abs() > most
            });
            numbers.count()
        };
        assert_eq!(wrong(0), 0, "{kind:?}");
        // Bits from any other place are seen.
        let mut other = 1;
        while other < numbers {
            assert!(wrong(other) > found.len() / 2, "{kind:?} {other}");
            other *= 2;
        }
    }
}

#[test]
fn blocks_that_were_computed_by_hand_read_as_they_should() {
    let read = |kind, raw: Vec<u8>, count| {
        Elements::Blocks(kind)
            .read(&mut Cursor::new(raw), 0, count)
            .unwrap()
    };
    // 0x3800 is 0.5, 0xc000 is -2, 0x3c00 is 1.
    let q8 = read(
        GgmlDType::Q8_0,
        [vec![0x00, 0x38, 3, 0xff, 0x80], vec![0; 29]].concat(),
        32,
    );
    assert_eq!(q8[..4], [1.5, -0.5, -64.0, 0.0]);
    let q4 = read(
        GgmlDType::Q4_0,
        [vec![0x00, 0x38, 0x9f], vec![0x88; 15]].concat(),
        32,
    );
    assert_eq!((q4[0], q4[16], q4[1], q4[31]), (3.5, 0.5, 0.0, 0.0));
    let q4 = read(
        GgmlDType::Q4_1,
        [vec![0x00, 0x38, 0x00, 0xc0, 0x9f], vec![0; 15]].concat(),
        32,
    );
    assert_eq!((q4[0], q4[16], q4[1]), (5.5, 2.5, -2.0));
    // Scale 2 and minimum 3 for the first 32, scale 0 and minimum 0 for all others.
    let mut block = vec![0; 144];
    (block[1], block[3], block[4], block[8], block[16]) = (0x38, 0x3c, 2, 3, 0xf5);
    let q4 = read(GgmlDType::Q4K, block, 256);
    assert_eq!((q4[0], q4[1], q4[32], q4[64]), (2.0, -3.0, 0.0, 0.0));
    let mut block = vec![0; 176];
    (block[1], block[3], block[4], block[8], block[16], block[48]) = (0x38, 0x3c, 2, 3, 1, 0xf5);
    let q5 = read(GgmlDType::Q5K, block, 256);
    assert_eq!((q5[0], q5[1], q5[32], q5[64]), (18.0, -3.0, 0.0, 0.0));
    let mut block = vec![0; 210];
    (block[0], block[128], block[192], block[209]) = (0x15, 0b10, 0xfe, 0x38);
    let q6 = read(GgmlDType::Q6K, block, 256);
    // (5 + 2 * 16 - 32) * -2 * 0.5, and what is all zeros is -32.
    assert_eq!((q6[0], q6[1], q6[16], q6[64]), (-5.0, 32.0, 0.0, 0.0));
}
