//! Models on the hub: `hf:Qwen/Qwen3-8B`. Only the files that are needed are fetched, into the cache that other tools use too.

mod id;
mod progress;
mod turn;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use super::folder::{CONFIG, INDEX, SETTINGS, Speech, TOKENIZER, WEIGHTS, indexed, shards};
use super::json;
use crate::engine::Error;
pub(super) use id::Id;
use progress::Told;

/// Where the hub is, unless `HF_ENDPOINT` says otherwise.
const ENDPOINT: &str = "https://huggingface.co";
/// How often a file whose transfer broke off is gone on with.
const RETRIES: usize = 4;

/// The hub and the cache.
pub(super) struct Hub {
    endpoint: String,
    cache: Cache,
    api: Api,
    /// Between two looks at what another process fetches.
    pause: Box<dyn Fn()>,
}

impl Hub {
    /// With the variables that other tools of the hub read too: `HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME`.
    ///
    /// # Errors
    /// [`Error::Broken`] where there is no place for the cache.
    pub(super) fn from_environment() -> Result<Self, Error> {
        Self::new(&|name| std::env::var_os(name))
    }

    fn new(variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, Error> {
        let set = |name| variable(name).filter(|value| !value.is_empty());
        let text = |name| set(name).and_then(|value| value.into_string().ok());
        let home = set("HF_HOME").map(PathBuf::from).or_else(|| {
            let home = set("HOME").or_else(|| set("USERPROFILE"))?;
            Some(PathBuf::from(home).join(".cache/huggingface"))
        });
        let home = home.ok_or_else(|| broken("there is no place for its cache: set HF_HOME"))?;
        // hf-hub makes links within the cache and wants it absolute for that.
        let home = std::path::absolute(&home)
            .map_err(|e| broken(&format!("HF_HOME {}: {e}", home.display())))?;
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        let cache = Cache::new(home.join("hub"));
        let token = text("HF_TOKEN").or_else(|| cache.token());
        let api = ApiBuilder::from_cache(cache.clone())
            .with_endpoint(endpoint.clone())
            .with_token(token)
            .with_progress(false)
            .with_retries(RETRIES)
            .build()
            .map_err(|e| broken(&e.to_string()))?;
        Ok(Self {
            endpoint,
            cache,
            api,
            pause: Box::new(turn::pause),
        })
    }

    /// The folder (or the GGUF file) of the model, fetched where it is not in the cache. What is there is taken as it is, without
    /// asking the hub: a model does not change under a service because it started again.
    ///
    /// # Errors
    /// [`Error::Broken`] with repository, file and what to do.
    pub(super) fn fetch(&self, id: &Id, tokenizer: bool) -> Result<PathBuf, Error> {
        if let Some(path) = self.cached(id, tokenizer) {
            return Ok(path);
        }
        tracing::info!(model = %id, endpoint = self.endpoint, "asking the hub");
        let repo = |revision: &str| {
            Repo::with_revision(id.repo.clone(), RepoType::Model, revision.to_owned())
        };
        let info = self.api.repo(repo(&id.revision)).info();
        let info = info.map_err(|e| self.failed(id, "its list of files", &e.to_string()))?;
        if !is_commit(&info.sha) {
            return Err(self.failed(id, "its list of files", "the commit that it names is none"));
        }
        let there: BTreeSet<String> = info.siblings.into_iter().map(|s| s.rfilename).collect();
        // All files are of one commit, even if the branch moves meanwhile.
        let files = Files {
            hub: self,
            id,
            there,
            repo: self.api.repo(repo(&info.sha)),
            commit: info.sha.clone(),
            snapshot: self.cache.repo(repo(&info.sha)).pointer_path(&info.sha),
        };
        let path = files.fetch(tokenizer)?;
        let named = self.cache.repo(repo(&id.revision));
        named
            .create_ref(&info.sha)
            .map_err(|e| self.failed(id, "its entry in the cache", &e.to_string()))?;
        Ok(path)
    }

    /// What the cache has, if it is whole: other tools keep what they need there.
    fn cached(&self, id: &Id, tokenizer: bool) -> Option<PathBuf> {
        let repo = Repo::with_revision(id.repo.clone(), RepoType::Model, id.revision.clone());
        let repo = self.cache.repo(repo);
        if let Some(file) = &id.file {
            return repo.get(file);
        }
        let folder = repo.get(CONFIG)?.parent()?.to_owned();
        let weights: Vec<String> = match json(&folder.join(INDEX)) {
            Ok(index) => shards(&index).ok()?.into_values().collect(),
            Err(_) => vec![WEIGHTS.to_owned()],
        };
        let whole = weights.iter().all(|name| folder.join(name).exists())
            && (!tokenizer || folder.join(TOKENIZER).exists() && speaks(&folder));
        whole.then_some(folder)
    }

    fn failed(&self, id: &Id, what: &str, error: &str) -> Error {
        broken(&format!(
            "{id}: {what} could not be fetched from {}: {error}; is the name right (and, where the model is not open to all, HF_TOKEN)? Behind a mirror set HF_ENDPOINT; without a network copy the model's folder here and give its path",
            self.endpoint
        ))
    }
}

/// Whether it is known how the model is spoken to. A fault of these files is told when they are read.
fn speaks(folder: &Path) -> bool {
    !matches!(Speech::of(folder), Ok(None))
}

/// The files of one commit.
struct Files<'a> {
    hub: &'a Hub,
    id: &'a Id,
    there: BTreeSet<String>,
    commit: String,
    repo: ApiRepo,
    snapshot: PathBuf,
}

impl Files<'_> {
    fn fetch(&self, tokenizer: bool) -> Result<PathBuf, Error> {
        if let Some(file) = &self.id.file {
            return self.need(file);
        }
        if !self.there.contains(CONFIG) {
            let ggufs: Vec<&String> = self
                .there
                .iter()
                .filter(|name| name.ends_with(".gguf"))
                .collect();
            if !ggufs.is_empty() {
                return Err(broken(&format!(
                    "{} has GGUF files: name one of them, as in hf:{}:{}. It has {ggufs:?}",
                    self.id, self.id.repo, ggufs[0]
                )));
            }
        }
        for name in SETTINGS {
            if self.there.contains(name) {
                self.need(name)?;
            }
        }
        if tokenizer {
            self.need(TOKENIZER)?;
        }
        if self.there.contains(INDEX) {
            let names = indexed(&self.need(INDEX)?)?;
            for name in names.into_values().collect::<BTreeSet<_>>() {
                self.need(&name)?;
            }
        } else {
            self.need(WEIGHTS)?;
        }
        // The last: where it is in the cache, all else is.
        self.need(CONFIG)?;
        Ok(self.snapshot.clone())
    }

    fn need(&self, name: &str) -> Result<PathBuf, Error> {
        let fail = |error: &str| self.hub.failed(self.id, name, error);
        if !self.there.contains(name) {
            return Err(fail("the repository has no such file"));
        }
        let path = self.snapshot.join(name);
        if path.exists() {
            return Ok(path);
        }
        let url = self.repo.url(name);
        let metadata = self.hub.api.metadata(&url);
        let metadata = metadata.map_err(|e| fail(&e.to_string()))?;
        // They become names in the cache.
        if !is_etag(metadata.etag()) || metadata.commit_hash() != self.commit {
            return Err(fail("its headers cannot be a hub's"));
        }
        let repo = Repo::new(self.id.repo.clone(), RepoType::Model);
        let blob = self.hub.cache.repo(repo).blob_path(metadata.etag());
        let fetched = loop {
            turn::wait(&blob, &self.hub.pause)
                .map_err(|e| broken(&format!("{}: {name}: {e}", self.id)))?;
            // The other's work; or what was there all the time.
            if path.exists() {
                return Ok(path);
            }
            let told = Told::new(self.id.to_string(), name.to_owned());
            match self.repo.download_with_progress(name, told) {
                // A third was faster.
                Err(ApiError::LockAcquisition(_)) => {}
                ended => break ended,
            }
        };
        let path = fetched.map_err(|e| {
            if matches!(e, ApiError::InvalidResume) {
                // It would never be gone on with; the next start begins anew.
                let _ = fs::remove_file(blob.with_extension("part"));
            }
            fail(&e.to_string())
        })?;
        let held = fs::metadata(&path).map_err(|e| fail(&e.to_string()))?.len();
        if held != metadata.size() as u64 {
            // Else it would be taken as whole at the next start.
            remove(&path);
            return Err(fail(&format!(
                "{held} bytes came of {}: the transfer broke off; start again",
                metadata.size()
            )));
        }
        Ok(path)
    }
}

/// A file of the cache and what it is a link to.
fn remove(path: &Path) {
    if let Ok(blob) = fs::canonicalize(path) {
        let _ = fs::remove_file(blob);
    }
    let _ = fs::remove_file(path);
}

fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

fn is_etag(text: &str) -> bool {
    let text = text.strip_prefix("W/").unwrap_or(text);
    let sign = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    (1..=128).contains(&text.len()) && text.bytes().all(sign)
}

fn broken(reason: &str) -> Error {
    Error::Broken {
        reason: format!("the hub: {reason}"),
    }
}

#[cfg(test)]
mod tests;
