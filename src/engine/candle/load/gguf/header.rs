//! A GGUF file's header, read without trust: no length in it makes this allocate more than the file has bytes, and lists stay in the
//! file until they are asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Seek, SeekFrom};

use candle_core::quantized::GgmlDType;

use super::super::Source;
use super::super::elements::Elements;

/// Far above what any model has.
const MOST_ENTRIES: u64 = 1 << 16;
const MOST_TEXT: u64 = 1 << 24;
const MOST_RANK: u32 = 4;
const DEEPEST_LIST: usize = 4;
/// Where the tensors begin is rounded up to a multiple of this, unless `general.alignment` says otherwise.
const ALIGNMENT: u64 = 32;

/// A value of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Whole(i128),
    Number(f64),
    Flag(bool),
    Text(String),
    /// Elements of a type at an offset of the file.
    List {
        kind: u32,
        count: u64,
        offset: u64,
    },
}

/// A tensor of the file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Info {
    pub(super) name: String,
    /// Slowest dimension first.
    pub(super) shape: Vec<usize>,
    pub(super) elements: Elements,
    /// In the file.
    pub(super) offset: u64,
}

/// What stands before the numbers.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) metadata: BTreeMap<String, Value>,
    pub(super) tensors: Vec<Info>,
}

type Result<T> = std::result::Result<T, String>;

/// Reads the header and checks that every tensor lies in the file and none on another.
///
/// # Errors
/// What cannot be, and where.
pub(super) fn read(source: &mut dyn Source) -> Result<Header> {
    let mut bytes = Bytes::new(source)?;
    if bytes.array()? != *b"GGUF" {
        return Err("is no GGUF file: it does not begin with GGUF".to_owned());
    }
    match bytes.u32()? {
        2 | 3 => {}
        version => {
            return Err(format!(
                "GGUF version {version} is not supported: 2 and 3, little-endian, are"
            ));
        }
    }
    let (tensors, entries) = (bytes.u64()?, bytes.u64()?);
    for (what, count) in [("tensors", tensors), ("metadata entries", entries)] {
        if count > MOST_ENTRIES {
            return Err(format!(
                "the header counts {count} {what}: at most {MOST_ENTRIES} are read"
            ));
        }
    }
    let mut metadata = BTreeMap::new();
    for _ in 0..entries {
        let key = bytes.text()?;
        let value = bytes.value().map_err(|e| format!("metadata {key}: {e}"))?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(format!("metadata {key} stands there twice"));
        }
    }
    let alignment = match metadata.get("general.alignment") {
        None => ALIGNMENT,
        Some(Value::Whole(n)) => u64::try_from(*n)
            .ok()
            .filter(|n| n.is_power_of_two() && *n <= 1 << 20)
            .ok_or_else(|| format!("general.alignment {n} is no power of two up to 1048576"))?,
        Some(_) => return Err("general.alignment is no whole number".to_owned()),
    };
    let mut infos = Vec::new();
    for _ in 0..tensors {
        let name = bytes.text()?;
        let info = bytes
            .info(name.clone())
            .map_err(|e| format!("tensor {name}: {e}"))?;
        infos.push(info);
    }
    let start = bytes.position.next_multiple_of(alignment);
    place(&mut infos, start, alignment, bytes.length)?;
    Ok(Header {
        metadata,
        tensors: infos,
    })
}

/// Makes the offsets those of the file, and checks them.
fn place(infos: &mut [Info], start: u64, alignment: u64, length: u64) -> Result<()> {
    let (mut names, mut spans) = (BTreeSet::new(), Vec::new());
    for info in infos.iter_mut() {
        let name = &info.name;
        if !names.insert(name.clone()) {
            return Err(format!("tensor {name} stands there twice"));
        }
        if !info.offset.is_multiple_of(alignment) {
            return Err(format!(
                "tensor {name}: its offset {} is no multiple of {alignment}",
                info.offset
            ));
        }
        let size = info.elements.bytes(&info.shape).ok_or_else(|| {
            format!(
                "tensor {name}: rows of the shape {:?} are no whole blocks",
                info.shape
            )
        })?;
        let end = start
            .checked_add(info.offset)
            .and_then(|from| from.checked_add(size));
        let Some(end) = end.filter(|end| *end <= length) else {
            return Err(format!(
                "tensor {name}: {size} bytes at offset {} do not lie within the file's {length}: the file is cut off, or not what it says",
                info.offset
            ));
        };
        info.offset += start;
        spans.push((info.offset, end, info.name.clone()));
    }
    spans.sort();
    match spans.windows(2).find(|pair| pair[1].0 < pair[0].1) {
        Some(pair) => Err(format!(
            "tensors {} and {} lie on each other",
            pair[0].2, pair[1].2
        )),
        None => Ok(()),
    }
}

/// The bytes of a list that [`read`] has passed over, as texts.
///
/// # Errors
/// Where the elements are no texts, or there are more than `most`.
pub(super) fn texts(source: &mut dyn Source, list: &Value, most: u64) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    let (mut bytes, count) = Bytes::at(source, list, 8, most)?;
    for _ in 0..count {
        texts.push(bytes.text()?);
    }
    Ok(texts)
}

/// A list of whole numbers of 32 bits.
///
/// # Errors
/// As [`texts`].
pub(super) fn integers(source: &mut dyn Source, list: &Value, most: u64) -> Result<Vec<i64>> {
    let kind = match list {
        Value::List { kind: 4, .. } => 4,
        _ => 5,
    };
    let mut integers = Vec::new();
    let (mut bytes, count) = Bytes::at(source, list, kind, most)?;
    for _ in 0..count {
        let number = bytes.u32()?;
        integers.push(if kind == 4 {
            i64::from(number)
        } else {
            i64::from(number.cast_signed())
        });
    }
    Ok(integers)
}

/// Bytes that know how many are left.
struct Bytes<'a> {
    source: std::io::BufReader<&'a mut dyn Source>,
    position: u64,
    length: u64,
}

impl<'a> Bytes<'a> {
    fn new(source: &'a mut dyn Source) -> Result<Self> {
        let length = source.seek(SeekFrom::End(0)).map_err(|e| e.to_string())?;
        source.rewind().map_err(|e| e.to_string())?;
        Ok(Self {
            source: std::io::BufReader::new(source),
            position: 0,
            length,
        })
    }

    fn at(source: &'a mut dyn Source, list: &Value, kind: u32, most: u64) -> Result<(Self, u64)> {
        let Value::List {
            kind: found,
            count,
            offset,
        } = *list
        else {
            return Err("is no list".to_owned());
        };
        if found != kind {
            return Err(format!("is a list of type {found}, but {kind} is wanted"));
        }
        if count > most {
            return Err(format!("has {count} elements: at most {most} are read"));
        }
        let mut bytes = Self::new(source)?;
        bytes
            .source
            .seek(SeekFrom::Start(offset))
            .map_err(|e| e.to_string())?;
        bytes.position = offset;
        Ok((bytes, count))
    }

    /// Takes up `count` bytes of the file.
    fn pass(&mut self, count: u64) -> Result<()> {
        let left = self.length - self.position;
        if count > left {
            return Err(format!(
                "at byte {} {count} bytes should follow, but there are {left}: the file is cut off or no GGUF file",
                self.position
            ));
        }
        self.position += count;
        Ok(())
    }

    fn skip(&mut self, count: u64) -> Result<()> {
        self.pass(count)?;
        let by = i64::try_from(count).map_err(|e| e.to_string())?;
        self.source.seek_relative(by).map_err(|e| e.to_string())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.pass(N as u64)?;
        let mut array = [0; N];
        self.source
            .read_exact(&mut array)
            .map_err(|e| e.to_string())?;
        Ok(array)
    }

    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Result<String> {
        let at = self.position;
        let size = self.u64()?;
        if size > MOST_TEXT {
            return Err(format!(
                "the text at byte {at} should have {size} bytes: at most {MOST_TEXT} are read"
            ));
        }
        self.pass(size)?;
        let mut text = vec![0; usize::try_from(size).map_err(|e| e.to_string())?];
        self.source
            .read_exact(&mut text)
            .map_err(|e| e.to_string())?;
        String::from_utf8(text).map_err(|e| format!("the text at byte {at}: {e}"))
    }

    fn value(&mut self) -> Result<Value> {
        let kind = self.u32()?;
        Ok(match kind {
            0 => Value::Whole(u8::from_le_bytes(self.array()?).into()),
            1 => Value::Whole(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Whole(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Whole(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Whole(self.u32()?.into()),
            5 => Value::Whole(self.u32()?.cast_signed().into()),
            6 => Value::Number(f32::from_le_bytes(self.array()?).into()),
            7 => Value::Flag(self.array::<1>()? != [0]),
            8 => Value::Text(self.text()?),
            9 => {
                let (kind, count) = (self.u32()?, self.u64()?);
                let offset = self.position;
                self.skip_list(kind, count, 1)?;
                Value::List {
                    kind,
                    count,
                    offset,
                }
            }
            10 => Value::Whole(self.u64()?.into()),
            11 => Value::Whole(self.u64()?.cast_signed().into()),
            12 => Value::Number(f64::from_le_bytes(self.array()?)),
            other => return Err(format!("there is no type {other}")),
        })
    }

    fn skip_list(&mut self, kind: u32, count: u64, depth: usize) -> Result<()> {
        let size = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            8 => {
                for _ in 0..count {
                    let size = self.u64()?;
                    self.skip(size)?;
                }
                return Ok(());
            }
            9 if depth < DEEPEST_LIST => {
                for _ in 0..count {
                    let (kind, count) = (self.u32()?, self.u64()?);
                    self.skip_list(kind, count, depth + 1)?;
                }
                return Ok(());
            }
            9 => return Err(format!("lists lie more than {DEEPEST_LIST} deep")),
            other => return Err(format!("a list of type {other}, which there is not")),
        };
        let bytes = count
            .checked_mul(size)
            .ok_or_else(|| format!("a list of {count} elements"))?;
        self.skip(bytes)
    }

    fn info(&mut self, name: String) -> Result<Info> {
        let rank = self.u32()?;
        if !(1..=MOST_RANK).contains(&rank) {
            return Err(format!(
                "it should have {rank} dimensions: 1 to {MOST_RANK} can be"
            ));
        }
        let mut shape = Vec::new();
        for _ in 0..rank {
            let size = self.u64()?;
            shape.push(
                usize::try_from(size)
                    .ok()
                    .filter(|size| *size > 0)
                    .ok_or_else(|| format!("a dimension is {size}"))?,
            );
        }
        // GGUF has the fastest first.
        shape.reverse();
        let elements = match self.u32()? {
            0 => Elements::F32,
            1 => Elements::F16,
            2 => Elements::Blocks(GgmlDType::Q4_0),
            3 => Elements::Blocks(GgmlDType::Q4_1),
            8 => Elements::Blocks(GgmlDType::Q8_0),
            12 => Elements::Blocks(GgmlDType::Q4K),
            13 => Elements::Blocks(GgmlDType::Q5K),
            14 => Elements::Blocks(GgmlDType::Q6K),
            30 => Elements::Bf16,
            other => {
                return Err(format!(
                    "its number format {other} is not supported: F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K, Q5_K and Q6_K are"
                ));
            }
        };
        Ok(Info {
            name,
            shape,
            elements,
            offset: self.u64()?,
        })
    }
}

#[cfg(test)]
mod tests;
