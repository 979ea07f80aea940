//! The command line.

mod cli;

use std::process::ExitCode;

/// glibc gives threads heaps of their own and keeps what was freed in each. With the threads of librdkafka, sled and the
/// runtime the heap then falls to pieces and grows for long after all that is needed is there; with few heaps the threads
/// wait for one another, which costs the stream half of its events a second. librdkafka allocates from this one too.
#[cfg(target_os = "linux")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::run()
}
