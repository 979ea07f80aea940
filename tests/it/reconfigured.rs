//! A start with other topics than the one before it.

use limn::codec;

use crate::broker;
use crate::case::{Case, PARTITIONS};

#[test]
fn an_offset_whose_checkpoint_is_in_another_topic_is_refused_until_it_is_committed_by_hand() {
    let mut case = Case::new("elsewhere");
    assert!(case.topics().status.success());
    case.produce(9, 8, 0);
    case.run_to_the_end("a");
    case.produce(9, 8, 8);
    let committed = case.broker.committed_offsets(&case.input, &case.input);
    let kept = std::mem::replace(
        &mut case.replaced,
        vec![(".checkpoints\"", ".others\"".to_owned())],
    );
    assert!(case.topics().status.success());
    let (code, said) = case.ended("a");
    assert_eq!(code, Some(1), "{said}");
    let before = format!("there was one in {}.checkpoints when the group", case.input);
    assert!(said.contains(&before) && said.contains("others["), "{said}");
    assert!(case.read("others").is_empty());
    // With the old one it goes on.
    let other = std::mem::replace(&mut case.replaced, kept);
    case.run_to_the_end("a");
    case.all_folded();
    case.commit_by_hand(&committed);
    case.replaced = other;
    case.run_to_the_end("a");
    // The profiles are the same ones: what is folded in them is not folded again.
    assert_eq!(case.verify().folded, 144);
    // The first topic's checkpoints are there still, and out of date.
    let committed = case.broker.committed_offsets(&case.input, &case.input);
    case.produce(9, 8, 16);
    case.run_to_the_end("a");
    case.replaced = Vec::new();
    let (code, said) = case.ended("a");
    assert_eq!(code, Some(1), "{said}");
    let before = format!("there was one in {}.others when the group", case.input);
    assert!(said.contains(&before), "{said}");
    // They end where these offsets are: nothing but the missing note tells that more is folded behind.
    case.commit_by_hand(&committed);
    case.run_to_the_end("a");
    assert_eq!(case.verify().folded, 216);
}

/// Somebody deletes an output topic, and has it made again.
fn made_anew(case: &Case<'_>, kind: &str) {
    case.broker.delete_topics(&[&case.topic(kind)]);
    assert!(case.topics().status.success());
}

#[test]
fn a_folder_with_an_older_checkpoint_than_the_offset_is_not_taken_for_the_topic_that_was_made_anew()
{
    let mut case = Case::new("remade");
    assert!(case.topics().status.success());
    case.produce(9, 8, 0);
    case.run_to_the_end("a");
    case.produce(9, 8, 8);
    case.run_to_the_end("b");
    let committed = case.broker.committed_offsets(&case.input, &case.input);
    let checkpoints = case.topic("checkpoints");
    made_anew(&case, "checkpoints");
    let (code, said) = case.ended("a");
    assert_eq!(code, Some(1), "{said}");
    let before = format!("there was one in {checkpoints} when the group");
    assert!(said.contains(&before), "{said}");
    case.commit_by_hand(&committed);
    case.run_to_the_end("a");
    assert_eq!(case.verify().folded, 144);
}

#[test]
fn a_folder_with_the_checkpoint_of_the_offset_goes_on_without_the_topic_that_had_it() {
    let mut case = Case::new("kept");
    assert!(case.topics().status.success());
    case.produce(9, 8, 0);
    case.run_to_the_end("a");
    made_anew(&case, "checkpoints");
    case.produce(9, 8, 8);
    case.run_to_the_end("a");
    assert_eq!(case.verify().folded, 144);
}

#[test]
fn profiles_that_were_deleted_are_not_begun_anew_unless_the_offset_is_committed_by_hand() {
    let mut case = Case::new("gone");
    assert!(case.topics().status.success());
    case.produce(9, 8, 0);
    case.run_to_the_end("a");
    let profiles = case.topic("profiles");
    made_anew(&case, "profiles");
    case.produce(9, 1, 8);
    for folder in ["a", "b"] {
        let (code, said) = case.ended(folder);
        assert_eq!(code, Some(1), "{said}");
        let lost = "says that profiles were written to it: it was deleted and made anew";
        assert!(said.contains(&profiles) && said.contains(lost), "{said}");
    }
    let committed = case.broker.committed_offsets(&case.input, &case.input);
    case.commit_by_hand(&committed);
    case.run_to_the_end("a");
    // There are profiles again.
    case.produce(9, 1, 9);
    case.run_to_the_end("b");
    let states = case.read("profiles").into_iter();
    let mut versions: Vec<u64> = states
        .map(|state| codec::decode_state(&state.value.unwrap()).unwrap().version)
        .collect();
    versions.sort_unstable();
    assert_eq!(versions, [[1; 9], [2; 9]].concat());
}

#[test]
fn a_partition_without_a_profile_needs_none_of_before() {
    let case = Case::new("poisoned");
    assert!(case.topics().status.success());
    for partition in 0..PARTITIONS {
        case.broker
            .produce_all(&case.input, partition, &[("ann", "{")]);
    }
    case.run_to_the_end("a");
    made_anew(&case, "profiles");
    case.run_to_the_end("a");
    case.run_to_the_end("b");
    assert_eq!(case.verify().dead_lettered, 3);
}

#[test]
fn an_output_topic_that_is_missing_is_named_with_what_makes_it() {
    let mut case = Case::new("absent");
    assert!(case.topics().status.success());
    case.produce(3, 4, 0);
    let missing = case.topic("profiles");
    broker::shared().delete_topics(&[&missing]);
    let (code, said) = case.ended("a");
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains(&missing) && said.contains("limn topics"),
        "{said}"
    );
}
