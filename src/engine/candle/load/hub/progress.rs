//! Tells of a file that is on its way.

use std::time::{Duration, Instant};

use hf_hub::api::Progress;

/// How often a line is written while a file comes.
const INTERVAL: Duration = Duration::from_secs(5);

pub(super) struct Told {
    model: String,
    file: String,
    bytes: usize,
    done: usize,
    last: Instant,
}

impl Told {
    pub(super) fn new(model: String, file: String) -> Self {
        Self {
            model,
            file,
            bytes: 0,
            done: 0,
            last: Instant::now(),
        }
    }
}

impl Progress for Told {
    /// Comes again where the transfer is gone on with; `update` tells then how much was there.
    fn init(&mut self, size: usize, _: &str) {
        if self.bytes == 0 {
            tracing::info!(
                model = self.model,
                file = self.file,
                bytes = size,
                "fetching"
            );
        }
        self.bytes = size;
        self.done = 0;
    }

    fn update(&mut self, size: usize) {
        self.done += size;
        if self.last.elapsed() >= INTERVAL {
            self.last = Instant::now();
            tracing::info!(
                model = self.model,
                file = self.file,
                done = self.done,
                bytes = self.bytes,
                "fetching"
            );
        }
    }

    fn finish(&mut self) {
        tracing::info!(
            model = self.model,
            file = self.file,
            bytes = self.done,
            "fetched"
        );
    }
}
