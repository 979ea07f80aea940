use super::*;
use proptest::prelude::*;

const RANDOM: Sampling = Sampling::Random {
    temperature: 1.0,
    top_k: 0,
    top_p: 1.0,
    min_p: 0.0,
    seed: 3,
};

/// Of a hundred equal tokens with seed 3, computed apart from this code.
const PINNED: [u32; 12] = [81, 43, 40, 82, 61, 72, 51, 78, 25, 95, 90, 76];

fn random(temperature: f64, top_k: u32, top_p: f64, min_p: f64) -> Sampling {
    Sampling::Random {
        temperature,
        top_k,
        top_p,
        min_p,
        seed: 3,
    }
}

/// How often each token is drawn.
fn counts(sampling: &Sampling, logits: &[f32], draws: usize) -> Vec<usize> {
    let mut counts = vec![0; logits.len()];
    for n in 0..draws {
        counts[choose(sampling, n, logits).unwrap() as usize] += 1;
    }
    counts
}

#[test]
fn greedy_takes_the_first_of_the_highest() {
    let logits = [1.0, 5.0, 5.0, f32::NEG_INFINITY];
    assert_eq!(likeliest(&logits), Ok(1));
    for n in 0..20 {
        assert_eq!(choose(&Sampling::Greedy, n, &logits), Ok(1));
        assert_eq!(choose(&random(0.0, 0, 1.0, 0.0), n, &logits), Ok(1));
        // So cold that only the highest are left.
        assert!(choose(&random(1e-300, 0, 1.0, 0.0), n, &logits).unwrap() < 3);
    }
}

#[test]
fn what_is_not_a_number_is_an_error_that_names_the_token() {
    for sampling in [Sampling::Greedy, RANDOM, random(0.6, 20, 0.95, 0.0)] {
        let error = choose(&sampling, 0, &[0.0, 1.0, f32::NAN]).unwrap_err();
        assert_eq!(error, Fault::NotANumber(2));
        assert!(error.to_string().contains("token 2"), "{error}");
        let error = choose(&sampling, 0, &[f32::INFINITY, 1.0]);
        assert_eq!(error, Err(Fault::NotANumber(0)));
        let error = choose(&sampling, 0, &[f32::NEG_INFINITY; 3]);
        assert_eq!(error, Err(Fault::Nothing));
        assert_eq!(choose(&sampling, 0, &[]), Err(Fault::Nothing));
    }
}

#[test]
fn tokens_are_drawn_as_often_as_they_are_likely() {
    let probabilities = [0.5f64, 0.3, 0.15, 0.05];
    let logits: Vec<f32> = probabilities.iter().map(|p| p.ln() as f32).collect();
    let counts = counts(&RANDOM, &logits, 20_000);
    for (count, probability) in counts.iter().zip(probabilities) {
        let share = *count as f64 / 20_000.0;
        assert!((share - probability).abs() < 0.015, "{share} {probability}");
    }
    // Half the temperature squares the odds.
    let cold = self::counts(&random(0.5, 0, 1.0, 0.0), &logits, 20_000);
    let odds = cold[0] as f64 / cold[1] as f64;
    assert!((odds - (0.5f64 / 0.3).powi(2)).abs() < 0.25, "{odds}");
}

#[test]
fn each_limit_leaves_the_tokens_that_it_names() {
    // Probabilities .4 .1 .3 .2
    let logits: Vec<f32> = [0.4f64, 0.1, 0.3, 0.2]
        .iter()
        .map(|p| p.ln() as f32)
        .collect();
    let drawn = |sampling: Sampling| -> Vec<usize> {
        let counts = counts(&sampling, &logits, 2000);
        (0..4).filter(|&token| counts[token] > 0).collect()
    };
    assert_eq!(drawn(random(1.0, 0, 1.0, 0.0)), [0, 1, 2, 3]);
    assert_eq!(drawn(random(1.0, 1, 1.0, 0.0)), [0]);
    assert_eq!(drawn(random(1.0, 2, 1.0, 0.0)), [0, 2]);
    assert_eq!(drawn(random(1.0, 100, 1.0, 0.0)), [0, 1, 2, 3]);
    // The one that crosses the limit stays.
    assert_eq!(drawn(random(1.0, 0, 0.35, 0.0)), [0]);
    assert_eq!(drawn(random(1.0, 0, 0.45, 0.0)), [0, 2]);
    assert_eq!(drawn(random(1.0, 0, 0.75, 0.0)), [0, 2, 3]);
    // Of the three likeliest, those that reach half of the three's probability.
    assert_eq!(drawn(random(1.0, 3, 0.5, 0.0)), [0, 2]);
    assert_eq!(drawn(random(1.0, 0, 1.0, 0.45)), [0, 2, 3]);
    assert_eq!(drawn(random(1.0, 0, 1.0, 0.6)), [0, 2]);
    assert_eq!(drawn(random(1.0, 0, 1.0, 1.0)), [0]);
}

#[test]
fn equal_tokens_are_cut_off_in_their_order() {
    let counts = counts(&random(1.0, 3, 1.0, 0.0), &[1.0; 600], 500);
    assert!(counts[..3].iter().all(|&count| count > 100));
    assert!(counts[3..].iter().all(|&count| count == 0));
    // A nucleus larger than what is sorted first.
    let counts = self::counts(&random(1.0, 0, 0.5, 0.0), &[1.0; 1200], 6000);
    assert!(counts[..600].iter().all(|&count| count > 0));
    assert!(counts[600..].iter().all(|&count| count == 0));
}

#[test]
fn the_draws_are_the_same_on_every_machine() {
    let drawn: Vec<u32> = (0..12)
        .map(|n| choose(&RANDOM, n, &[1.0; 100]).unwrap())
        .collect();
    assert_eq!(drawn, PINNED);
    // And other ones with another seed.
    let mut other = RANDOM;
    if let Sampling::Random { seed, .. } = &mut other {
        *seed = 4;
    }
    let others: Vec<u32> = (0..12)
        .map(|n| choose(&other, n, &[1.0; 100]).unwrap())
        .collect();
    assert_ne!(drawn[1..], others[..11], "the same draws one place apart");
    assert_ne!(drawn, others);
}

proptest! {
    #[test]
    fn a_token_that_is_drawn_is_one_that_the_limits_leave(
        logits in proptest::collection::vec(-20f32..20.0, 1..700),
        temperature in 0.05f64..2.0,
        top_k in 0u32..50,
        top_p in 0.01f64..=1.0,
        min_p in 0.0f64..=1.0,
        n in 0usize..1000,
    ) {
        let token = choose(&random(temperature, top_k, top_p, min_p), n, &logits).unwrap() as usize;
        // By the plain definition, over all tokens sorted.
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        if top_k > 0 {
            order.truncate(top_k as usize);
        }
        let place = order.iter().position(|&t| t == token);
        prop_assert!(place.is_some(), "not among the top k");
        let weight = |t: usize| (f64::from(logits[t] - logits[order[0]]) / temperature).exp();
        let all: f64 = order.iter().map(|&t| weight(t)).sum();
        let before: f64 = order[..place.unwrap()].iter().map(|&t| weight(t)).sum();
        prop_assert!(before / all < top_p + 1e-4, "behind the nucleus");
        prop_assert!(weight(token) > min_p - 1e-4, "less likely than min_p");
    }
}
