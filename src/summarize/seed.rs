//! Each request's own seed.

use crate::engine::Sampling;

/// The sampling with a seed made of the configured one and of the prompt: what is drawn for one user tells nothing of what is drawn
/// for another, the same question draws the same again, and each of its `attempt`s (from 0) something else.
pub(super) fn seeded(sampling: Sampling, attempt: u32, system: &str, user: &str) -> Sampling {
    let Sampling::Random {
        temperature,
        top_k,
        top_p,
        min_p,
        seed,
    } = sampling
    else {
        return sampling;
    };
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.update(&attempt.to_le_bytes());
    hasher.update(&(system.len() as u64).to_le_bytes());
    hasher.update(system.as_bytes());
    hasher.update(user.as_bytes());
    let mut first = [0; 8];
    hasher.finalize_xof().fill(&mut first);
    Sampling::Random {
        temperature,
        top_k,
        top_p,
        min_p,
        // Servers take it as a signed number.
        seed: u64::from_le_bytes(first) >> 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(seed: u64, attempt: u32, system: &str, user: &str) -> u64 {
        let sampling = Sampling::Random {
            temperature: 0.5,
            top_k: 3,
            top_p: 0.9,
            min_p: 0.1,
            seed,
        };
        match seeded(sampling, attempt, system, user) {
            Sampling::Random {
                temperature: 0.5,
                top_k: 3,
                top_p: 0.9,
                min_p: 0.1,
                seed,
            } => seed,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_same_question_has_the_same_seed_and_any_other_has_its_own() {
        let base = of(1, 0, "ab", "c");
        assert_eq!(base, of(1, 0, "ab", "c"));
        assert!(i64::try_from(base).is_ok());
        for other in [
            of(2, 0, "ab", "c"),
            of(1, 1, "ab", "c"),
            of(1, 0, "a", "bc"),
            of(1, 0, "ab", "d"),
        ] {
            assert_ne!(base, other);
        }
        assert_eq!(seeded(Sampling::Greedy, 1, "a", "b"), Sampling::Greedy);
    }
}
