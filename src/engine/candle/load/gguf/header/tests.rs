//! Headers written byte by byte, most of them lies.

use std::io::Cursor;

use super::*;

struct Writer(Vec<u8>);

impl Writer {
    fn new(tensors: u64, entries: u64) -> Self {
        Self(b"GGUF".to_vec()).u32(3).u64(tensors).u64(entries)
    }

    fn u32(mut self, n: u32) -> Self {
        self.0.extend(n.to_le_bytes());
        self
    }

    fn u64(mut self, n: u64) -> Self {
        self.0.extend(n.to_le_bytes());
        self
    }

    fn text(self, text: &str) -> Self {
        let mut this = self.u64(text.len() as u64);
        this.0.extend(text.bytes());
        this
    }

    /// A tensor of that format at that offset of the data.
    fn tensor(self, name: &str, shape: &[u64], kind: u32, offset: u64) -> Self {
        let rank = u32::try_from(shape.len()).unwrap();
        let this = self.text(name).u32(rank);
        let this = shape.iter().fold(this, |this, size| this.u64(*size));
        this.u32(kind).u64(offset)
    }

    fn data(mut self, bytes: usize) -> Self {
        self.0.resize(self.0.len().next_multiple_of(32) + bytes, 0);
        self
    }

    fn read(self) -> Result<Header> {
        read(&mut Cursor::new(self.0))
    }

    fn error(self) -> String {
        self.read().unwrap_err()
    }
}

#[test]
fn values_and_tensors_are_read_and_lists_stay_in_the_file() {
    let writer = Writer::new(2, 4)
        .text("a")
        .u32(4)
        .u32(7)
        .text("b")
        .u32(8)
        .text("hello")
        .text("c")
        .u32(9)
        .u32(8)
        .u64(2)
        .text("x")
        .text("yz")
        .text("d")
        .u32(9)
        .u32(5)
        .u64(2)
        .u32(1)
        .u32(u32::MAX)
        .tensor("one", &[3, 2], 0, 0)
        .tensor("two", &[32], 8, 32)
        .data(66);
    let bytes = writer.0.clone();
    let header = writer.read().unwrap();
    assert_eq!(header.metadata["a"], Value::Whole(7));
    assert_eq!(header.metadata["b"], Value::Text("hello".to_owned()));
    let mut source = Cursor::new(bytes);
    assert_eq!(
        texts(&mut source, &header.metadata["c"], 2).unwrap(),
        ["x", "yz"]
    );
    assert_eq!(
        integers(&mut source, &header.metadata["d"], 2).unwrap(),
        [1, -1]
    );
    assert!(
        texts(&mut source, &header.metadata["c"], 1)
            .unwrap_err()
            .contains("2 elements")
    );
    assert!(
        texts(&mut source, &header.metadata["d"], 9)
            .unwrap_err()
            .contains("type 5")
    );
    assert!(
        integers(&mut source, &header.metadata["a"], 9)
            .unwrap_err()
            .contains("no list")
    );
    let [one, two] = &header.tensors[..] else {
        panic!()
    };
    assert_eq!(
        (one.shape.as_slice(), one.elements),
        (&[2, 3][..], Elements::F32)
    );
    assert_eq!(two.elements, Elements::Blocks(GgmlDType::Q8_0));
    assert_eq!((one.offset % 32, two.offset - one.offset), (0, 32));
}

#[test]
fn a_file_that_is_cut_off_anywhere_is_an_error() {
    let whole = Writer::new(1, 2)
        .text("a")
        .u32(9)
        .u32(8)
        .u64(1)
        .text("x")
        .text("b")
        .u32(12)
        .u64(0)
        .tensor("one", &[8], 0, 0)
        .data(32);
    for length in 0..whole.0.len() {
        let cut = Writer(whole.0[..length].to_vec());
        assert!(cut.read().is_err(), "{length} of {} bytes", whole.0.len());
    }
    assert!(whole.read().is_ok());
}

#[test]
fn lengths_and_counts_beyond_the_file_are_errors_that_tell_the_place() {
    let entry = || Writer::new(0, 1).text("key");
    for (writer, word) in [
        (Writer(b"GGML".to_vec()).u32(3), "does not begin with GGUF"),
        (Writer(b"GGUF".to_vec()).u32(1).u32(0), "version 1"),
        (Writer(b"GGUF".to_vec()).u32(3 << 24), "little-endian"),
        (
            Writer::new(u64::MAX, 0),
            "counts 18446744073709551615 tensors",
        ),
        (Writer::new(0, u64::MAX), "metadata entries"),
        (Writer::new(0, 1).u64(u64::MAX), "at byte 24"),
        (Writer::new(0, 1).u64(1000), "1000 bytes should follow"),
        (entry().u32(8).u64(1 << 40), "metadata key"),
        (entry().u32(9).u32(0).u64(u64::MAX), "metadata key"),
        (entry().u32(9).u32(10).u64(u64::MAX / 4), "metadata key"),
        (entry().u32(9).u32(8).u64(u64::MAX), "should follow"),
        (entry().u32(9).u32(9).u64(u64::MAX), "should follow"),
        (entry().u32(9).u32(99).u64(1), "type 99"),
        (entry().u32(13), "no type 13"),
        (
            Writer::new(0, 2)
                .text("k")
                .u32(4)
                .u32(0)
                .text("k")
                .u32(4)
                .u32(0),
            "twice",
        ),
        (Writer::new(0, 1).u64(2).u32(0xffff), "byte 24"),
    ] {
        let error = writer.error();
        assert!(error.contains(word), "{word}: {error}");
    }
    let deep = (0..64).fold(entry().u32(9), |writer, _| writer.u32(9).u64(1));
    assert!(deep.error().contains("deep"));
}

#[test]
fn tensors_that_do_not_lie_in_the_file_or_lie_on_each_other_are_named() {
    let one = |shape: &[u64], kind, offset| {
        Writer::new(1, 0)
            .tensor("w", shape, kind, offset)
            .data(128)
            .error()
    };
    for (error, word) in [
        (one(&[33], 0, 0), "do not lie within"),
        (one(&[8], 0, 128), "do not lie within"),
        (one(&[8], 0, u64::MAX - 31), "do not lie within"),
        (one(&[8], 0, 4), "no multiple of 32"),
        (one(&[], 0, 0), "0 dimensions"),
        (one(&[1; 5], 0, 0), "5 dimensions"),
        (one(&[0], 0, 0), "a dimension is 0"),
        (one(&[1 << 40, 1 << 40], 0, 0), "no whole blocks"),
        (one(&[u64::MAX, 2], 1, 0), "no whole blocks"),
        (one(&[1 << 62, 1 << 1], 0, 0), "no whole blocks"),
        (one(&[31], 8, 0), "no whole blocks"),
        (one(&[8], 10, 0), "number format 10"),
        (one(&[8], u32::MAX, 0), "number format"),
    ] {
        assert!(
            error.contains("tensor w") && error.contains(word),
            "{word}: {error}"
        );
    }
    let two = |a: u64, b: u64| {
        let writer = Writer::new(2, 0)
            .tensor("v", &[16], 0, a)
            .tensor("w", &[8], 0, b);
        writer.data(128).read()
    };
    assert!(two(0, 64).is_ok() && two(32, 0).is_ok());
    for (a, b) in [(0, 32), (0, 0), (32, 64)] {
        assert!(
            two(a, b).unwrap_err().contains("lie on each other"),
            "{a} {b}"
        );
    }
    let twice = Writer::new(2, 0)
        .tensor("w", &[8], 0, 0)
        .tensor("w", &[8], 0, 32);
    assert!(twice.data(128).error().contains("twice"));
}
