//! The command line.

mod cli;

use std::process::ExitCode;

/// glibc gives threads heaps of their own and keeps what was freed in each. With the threads of librdkafka, sled and the
/// runtime the heap then falls to pieces and grows for long after all that is needed is there; with two heaps
/// (`M_ARENA_MAX`) the threads wait for one another: `limn bench stream` with 3,000,000 events, on two cores with builds
/// beside it, did 22,383 events a second then and 52,157 with this one. librdkafka allocates from it too.
#[cfg(target_os = "linux")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::run()
}
