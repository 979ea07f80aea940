//! An answer that repeats itself without end.

/// A run of tokens that stands so often at the end, and has so many tokens altogether, is a loop.
const REPEATS: usize = 4;
const TOKENS: usize = 32;
const PERIOD: usize = 64;

/// Whether the tokens end in the same run over and over.
pub(super) fn loops(tokens: &[u32]) -> bool {
    (1..=PERIOD.min(tokens.len() / REPEATS)).any(|period| {
        let repeats = REPEATS.max(TOKENS.div_ceil(period));
        let Some(start) = tokens.len().checked_sub(period * repeats) else {
            return false;
        };
        let tail = &tokens[start..];
        tail[period..].iter().zip(tail).all(|(a, b)| a == b)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_tokens_over_and_over_are_a_loop() {
        let run: Vec<u32> = [5, 6, 7].repeat(11);
        assert!(loops(&run));
        assert!(!loops(&run[..30]));
        assert!(!loops(&(0..500).collect::<Vec<_>>()));
        // A period of 64 is the longest that is looked for.
        assert!(loops(&(0..64).collect::<Vec<_>>().repeat(4)));
        assert!(!loops(&(0..65).collect::<Vec<_>>().repeat(8)));
    }
}
