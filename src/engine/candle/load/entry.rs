//! What [`entry`](super::super::entry) needs of this room.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::super::spec::Spec;
use super::stored::Stored;
use super::{Source, Tensors, Wanted, adapter, folder, gguf, safetensors};

pub(in super::super) fn gguf(path: &Path, source: Box<dyn Source>) {
    let wanted = Wanted {
        model: path,
        adapter: None,
        tokenizer: None,
        thinking: false,
    };
    if let Ok(mut loaded) = gguf::read(path, source, &wanted) {
        for (name, shape) in loaded.spec.weights() {
            // An error is as good.
            let _ = loaded.tensors.take(&name, &shape);
        }
    }
}

pub(in super::super) fn safetensors(mut source: Box<dyn Source>) {
    let Ok(places) = safetensors::header(source.as_mut(), 0) else {
        return;
    };
    let shapes: Vec<_> = places
        .iter()
        .map(|place| (place.name.clone(), place.shape.clone()))
        .collect();
    let mut stored = Stored {
        origin: PathBuf::from("fuzz.safetensors"),
        files: vec![(PathBuf::from("fuzz.safetensors"), source)],
        places: places
            .into_iter()
            .map(|place| (place.name.clone(), place))
            .collect::<BTreeMap<_, _>>(),
    };
    for (name, shape) in shapes {
        let _ = stored.take(&name, &shape);
    }
}

pub(in super::super) fn index(bytes: &[u8]) {
    if let Ok(index) = serde_json::from_slice(bytes)
        && let Ok(shards) = folder::shards(&index)
    {
        let leaves = |name: &String| name.contains(['/', '\\']) || name == "..";
        assert!(!shards.values().any(leaves));
    }
}

pub(in super::super) fn adapter(config: &[u8], weights: Box<dyn Source>) {
    let spec = Spec {
        layers: 2,
        hidden: 32,
        intermediate: 64,
        vocab: 300,
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        context: 128,
        norm_epsilon: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: None,
        head_norms: false,
        tied: true,
    };
    adapter::entry(config, weights, &spec);
}
