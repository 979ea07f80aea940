//! The name of a model on the hub.

use std::fmt;
use std::path::Path;

use super::broken;
use crate::engine::Error;

const SCHEME: &str = "hf:";

/// `hf:OWNER/NAME`, with `@REVISION` and `:FILE.gguf` where wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Id {
    pub(super) repo: String,
    pub(super) revision: String,
    /// A GGUF file of the repository.
    pub(super) file: Option<String>,
}

impl Id {
    /// `None`: a path of this machine.
    ///
    /// # Errors
    /// [`Error::Broken`] with the form that is wanted.
    pub(in super::super) fn of(model: &Path) -> Result<Option<Self>, Error> {
        let Some(text) = model.to_str().and_then(|text| text.strip_prefix(SCHEME)) else {
            return Ok(None);
        };
        Self::parse(text).map(Some).ok_or_else(|| {
            broken(&format!(
                "{SCHEME}{text} is no name of a model: hf:OWNER/NAME, hf:OWNER/NAME@REVISION or hf:OWNER/NAME:FILE.gguf would do"
            ))
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let (text, file) = match text.split_once(':') {
            Some((text, file)) => (text, Some(file)),
            None => (text, None),
        };
        let (repo, revision) = text.split_once('@').unwrap_or((text, "main"));
        let sound = (1..=2).contains(&repo.split('/').count())
            && [Some(repo), Some(revision), file]
                .iter()
                .flatten()
                .all(|path| is_path(path))
            && file.is_none_or(|file| {
                Path::new(file)
                    .extension()
                    .is_some_and(|e| e.eq_ignore_ascii_case("gguf"))
            });
        sound.then(|| Self {
            repo: repo.to_owned(),
            revision: revision.to_owned(),
            file: file.map(str::to_owned),
        })
    }
}

/// Becomes a part of addresses and of names in the cache: nothing in it may mean more than itself.
fn is_path(text: &str) -> bool {
    let sign = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'+');
    text.len() <= 256
        && text
            .split('/')
            .all(|part| !part.is_empty() && !part.starts_with('.') && part.bytes().all(sign))
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}", self.repo)?;
        if self.revision != "main" {
            write!(f, "@{}", self.revision)?;
        }
        match &self.file {
            Some(file) => write!(f, ":{file}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_a_repository_and_where_wanted_a_revision_and_a_file() {
        let parts = |text: &str| {
            let id = Id::of(Path::new(text)).unwrap()?;
            assert_eq!(id.to_string(), text.replace("@main", ""));
            Some((id.repo, id.revision, id.file))
        };
        let own = str::to_owned;
        assert_eq!(
            parts("hf:Qwen/Qwen3-8B"),
            Some((own("Qwen/Qwen3-8B"), own("main"), None))
        );
        assert_eq!(
            parts("hf:gpt2@refs/pr/1"),
            Some((own("gpt2"), own("refs/pr/1"), None))
        );
        assert_eq!(
            parts("hf:a/b@v1.0:q/model-Q8_0.gguf"),
            Some((own("a/b"), own("v1.0"), Some(own("q/model-Q8_0.gguf"))))
        );
        assert_eq!(parts("models/hf.gguf"), None);
    }

    #[test]
    fn a_name_that_would_leave_the_repository_or_the_cache_is_refused() {
        for text in [
            "hf:",
            "hf:a/b/c",
            "hf:../x",
            "hf:a/..",
            "hf:a/b@../main",
            "hf:a/b@",
            "hf:a/b?x=1",
            "hf:a b/c",
            "hf:a/b:../../x.gguf",
            "hf:a/b:model.bin",
            "hf:a/b:",
            "hf:/etc/passwd",
        ] {
            let error = Id::of(Path::new(text)).unwrap_err().to_string();
            assert!(error.contains("hf:OWNER/NAME"), "{text}: {error}");
        }
    }
}
