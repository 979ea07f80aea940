//! mimalloc, in place of the system's allocator (Linux).

/// glibc gives threads heaps of their own and keeps what was freed in each. With the threads of librdkafka, sled and the
/// runtime the heap then falls to pieces and grows for long after all that is needed is there; with two heaps
/// (`M_ARENA_MAX`) the threads wait for one another: `limn bench stream` with 3,000,000 events, on two cores with builds
/// beside it, did 22,383 events a second then and 52,157 with this one. librdkafka allocates from it too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` of mimalloc.h, the same in its versions 2 and 3; libmimalloc-sys has no name for it.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// Milliseconds that freed memory is kept for what is allocated next, instead of a second. A stream's memory comes and goes
/// with each transaction, and pages that were given back are cleared when they are taken again: 133,000 instead of 122,000
/// events a second for 60 MiB more (`limn bench stream`, three runs each by turns).
const KEPT_MS: std::ffi::c_long = 10_000;

/// Keeps freed memory for longer, unless `MIMALLOC_PURGE_DELAY` says for how long, and has restores take small pages
/// ([`limn::pages`]). For a process without a model: that has its memory once and for all, and gains nothing.
pub fn keep_freed() {
    limn::pages::allow_small();
    // SAFETY: it sets a number that mimalloc reads atomically, from any thread at any time; the option exists.
    unsafe { libmimalloc_sys::mi_option_set_default(PURGE_DELAY, KEPT_MS) }
}
