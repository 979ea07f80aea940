//! `adapter_config.json`: the rank and the weight of each module, and what PEFT can do besides that is not merged here.

use regex::{Regex, RegexBuilder};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;

/// Bytes that a pattern may take when it is made ready.
const MOST_PATTERN: usize = 1 << 18;
const MOST_PATTERNS: usize = 1 << 12;
/// No weight is wider.
const MOST_RANK: i64 = 1 << 18;

/// How a module's matrices are added.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Scale {
    pub(super) rank: usize,
    /// Of the product.
    pub(super) factor: f64,
}

#[derive(Deserialize)]
struct File {
    r: i64,
    lora_alpha: f64,
    #[serde(default)]
    use_rslora: Option<bool>,
    #[serde(default)]
    rank_pattern: Option<InOrder<i64>>,
    #[serde(default)]
    alpha_pattern: Option<InOrder<f64>>,
    #[serde(flatten)]
    rest: serde_json::Map<String, Value>,
}

/// The patterns of an object in the order of the file: the first that matches counts.
struct InOrder<T>(Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for InOrder<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
            type Value = InOrder<T>;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("an object of patterns")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(InOrder(entries))
            }
        }
        deserializer.deserialize_map(Entries(std::marker::PhantomData))
    }
}

/// An adapter's ranks and weights, checked.
pub(super) struct Config {
    rank: i64,
    alpha: f64,
    root: bool,
    ranks: Vec<(Regex, i64)>,
    alphas: Vec<(Regex, f64)>,
}

impl Config {
    /// From the bytes of `adapter_config.json`.
    ///
    /// # Errors
    /// The key that is wrong, or that asks for what is not merged here.
    pub(super) fn parse(text: &[u8]) -> Result<Self, String> {
        let file: File = serde_json::from_slice(text).map_err(|e| e.to_string())?;
        refuse_unsupported(&file.rest)?;
        let (ranks, alphas) = (
            file.rank_pattern.map_or(Vec::new(), |all| all.0),
            file.alpha_pattern.map_or(Vec::new(), |all| all.0),
        );
        for (key, rank) in std::iter::once(("r", &file.r))
            .chain(ranks.iter().map(|(key, rank)| (key.as_str(), rank)))
        {
            if !(1..=MOST_RANK).contains(rank) {
                return Err(format!(
                    "the rank of {key} is {rank}: 1 to {MOST_RANK} would do"
                ));
            }
        }
        for (key, alpha) in std::iter::once(("lora_alpha", &file.lora_alpha))
            .chain(alphas.iter().map(|(key, alpha)| (key.as_str(), alpha)))
        {
            if !alpha.is_finite() {
                return Err(format!("the alpha of {key} is not finite"));
            }
        }
        Ok(Self {
            rank: file.r,
            alpha: file.lora_alpha,
            root: file.use_rslora.unwrap_or(false),
            ranks: patterns("rank_pattern", ranks)?,
            alphas: patterns("alpha_pattern", alphas)?,
        })
    }

    /// Of the module with that name (without `.weight`).
    pub(super) fn scale(&self, module: &str) -> Scale {
        let rank = first(&self.ranks, module).unwrap_or(self.rank);
        let alpha = first(&self.alphas, module).unwrap_or(self.alpha);
        #[allow(clippy::cast_precision_loss)]
        let divisor = if self.root {
            (rank as f64).sqrt()
        } else {
            rank as f64
        };
        Scale {
            // It was checked to be 1 or more, and small.
            rank: usize::try_from(rank).unwrap_or(1),
            factor: alpha / divisor,
        }
    }
}

fn first<T: Copy>(patterns: &[(Regex, T)], module: &str) -> Option<T> {
    let found = patterns
        .iter()
        .find(|(pattern, _)| pattern.is_match(module));
    found.map(|(_, value)| *value)
}

/// As PEFT has it (`get_pattern_key`): a pattern is a regular expression for the end of a module's name, whole parts of it.
fn patterns<T>(key: &str, all: Vec<(String, T)>) -> Result<Vec<(Regex, T)>, String> {
    if all.len() > MOST_PATTERNS {
        return Err(format!(
            "{key} has {} patterns: at most {MOST_PATTERNS} are read",
            all.len()
        ));
    }
    all.into_iter()
        .map(|(pattern, value)| {
            let whole = format!(r"^(?:.*\.)?(?:{pattern})$");
            RegexBuilder::new(&whole)
                .size_limit(MOST_PATTERN)
                .dfa_size_limit(MOST_PATTERN)
                .build()
                .map(|regex| (regex, value))
                .map_err(|e| format!("{key}: {pattern:?} is not supported: {e}"))
        })
        .collect()
}

/// What changes the weights in a way that is not computed here, by its key.
fn refuse_unsupported(rest: &serde_json::Map<String, Value>) -> Result<(), String> {
    if let Some(kind) = rest.get("peft_type").filter(|kind| *kind != "LORA") {
        return Err(format!("peft_type {kind} is not supported: LORA is"));
    }
    if let Some(bias) = rest
        .get("bias")
        .filter(|bias| !bias.is_null() && *bias != "none")
    {
        return Err(format!("bias {bias} is not supported: \"none\" is"));
    }
    // These begin with other base weights than the model's.
    let known = |kind: &Value| {
        matches!(
            kind.as_str(),
            None | Some("gaussian" | "eva" | "orthogonal")
        )
    };
    if let Some(kind) = rest.get("init_lora_weights").filter(|kind| !known(kind)) {
        return Err(format!(
            "init_lora_weights {kind} is not supported: it changes the base weights; convert the adapter to plain LoRA"
        ));
    }
    let others = [
        "fan_in_fan_out",
        "use_dora",
        "lora_bias",
        "use_qalora",
        "use_bdlora",
        "modules_to_save",
        "layer_replication",
        "trainable_token_indices",
        "target_parameters",
        "alora_invocation_tokens",
        "arrow_config",
    ];
    for key in others {
        let neutral = match rest.get(key) {
            None | Some(Value::Null | Value::Bool(false)) => true,
            Some(Value::Array(all)) => all.is_empty(),
            Some(Value::Object(all)) => all.is_empty(),
            Some(_) => false,
        };
        if !neutral {
            return Err(format!("{key} is not supported"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
