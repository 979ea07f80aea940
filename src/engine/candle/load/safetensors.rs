//! The safetensors format: a JSON header, then the numbers. The header is read here; the numbers when they are wanted.

use std::io::SeekFrom;

use safetensors::Dtype;
use safetensors::tensor::Metadata;

use super::Source;
use super::elements::Elements;
use super::stored::Place;

/// The longest header, as the safetensors format has it.
const LONGEST: u64 = 100_000_000;

/// The tensors of one file and where they lie; `file` is its place among the model's files.
///
/// # Errors
/// What in the header cannot be: lengths beyond the file, gaps or overlaps, shapes that do not fit their bytes, number formats that
/// are not read here.
pub(super) fn header(source: &mut dyn Source, file: usize) -> Result<Vec<Place>, String> {
    let length = source.seek(SeekFrom::End(0)).map_err(|e| e.to_string())?;
    source.rewind().map_err(|e| e.to_string())?;
    let mut size = [0; 8];
    if length < 8 {
        return Err(format!(
            "is no safetensors file: it has {length} bytes, and the header alone begins with 8"
        ));
    }
    source.read_exact(&mut size).map_err(|e| e.to_string())?;
    let size = u64::from_le_bytes(size);
    if size > length - 8 {
        return Err(format!(
            "the header should have {size} bytes, but only {} follow: the file is cut off or no safetensors file",
            length - 8
        ));
    }
    if size > LONGEST {
        return Err(format!(
            "the header should have {size} bytes, and {LONGEST} are allowed: no safetensors file"
        ));
    }
    let mut text = vec![0; usize::try_from(size).map_err(|e| e.to_string())?];
    source.read_exact(&mut text).map_err(|e| e.to_string())?;
    // Checks that the tensors follow each other without a gap and that each has the bytes of its shape.
    let metadata: Metadata =
        serde_json::from_slice(&text).map_err(|e| format!("the header: {e}"))?;
    let (data, held) = (metadata.data_len() as u64, length - 8 - size);
    if data != held {
        return Err(format!(
            "the tensors have {data} bytes by the header, but the file holds {held}: it is cut off, or not what it says"
        ));
    }
    let mut places = Vec::new();
    for (name, info) in metadata.tensors() {
        // A table of rotary frequencies that old checkpoints carry; it follows from the sizes.
        if name.ends_with(".rotary_emb.inv_freq") {
            continue;
        }
        let elements = match info.dtype {
            Dtype::F32 => Elements::F32,
            Dtype::F16 => Elements::F16,
            Dtype::BF16 => Elements::Bf16,
            other => {
                return Err(format!(
                    "tensor {name} is kept as {other:?}: F32, F16 and BF16 are read"
                ));
            }
        };
        places.push(Place {
            file,
            name,
            shape: info.shape.clone(),
            elements,
            offset: 8 + size + info.data_offsets.0 as u64,
            paired_heads: None,
        });
    }
    Ok(places)
}
