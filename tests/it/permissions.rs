//! On a broker with ACLs, with what docs/operations.md says that limn has to be allowed.

use crate::broker::{Broker, eventually};
use crate::case::{Case, stop};
use crate::http::{get, until_ready};

/// A topic whose limn says who it is.
fn case<'a>(broker: &'a Broker, name: &str) -> Case<'a> {
    let mut case = Case::on(broker, name);
    case.servers = broker.guard();
    let password = case.dir.path().join("password");
    std::fs::write(&password, "secret").unwrap();
    let who = format!(
        r#"[kafka.properties]
            "security.protocol" = "sasl_plaintext"
            "sasl.mechanism" = "PLAIN"
            "sasl.username" = "limn"
            "sasl.password" = {{ file = {password:?} }}
            [kafka.consumer]"#
    );
    case.replaced = vec![("[kafka.consumer]", who)];
    case
}

/// The arguments of each command of the documentation, with the names of this case.
fn documented(case: &Case<'_>) -> Vec<Vec<String>> {
    let text = include_str!("../../docs/operations.md");
    let commands = text.lines().filter_map(|line| {
        let arguments = line.trim().strip_prefix("kafka-acls.sh $p ")?;
        Some(format!("--add --allow-principal User:limn {arguments}"))
    });
    let group = &case.input;
    let named = |word: &str| match word {
        "interactions" => case.input.clone(),
        "limn" => group.clone(),
        "limn-" => format!("{group}-"),
        "limn.dead-letters" => case.topic("dead"),
        word => match word.strip_prefix("limn.") {
            Some(kind) => case.topic(kind),
            None => word.to_owned(),
        },
    };
    let words = |command: String| command.split_whitespace().map(named).collect();
    commands.map(words).collect()
}

fn grant(case: &Case<'_>, arguments: &[String]) {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    case.broker.acls(&arguments);
}

fn revoke(case: &Case<'_>, arguments: &[String]) {
    let all = arguments.iter().map(String::as_str);
    let revoke = all.map(|word| if word == "--add" { "--remove" } else { word });
    let arguments: Vec<&str> = revoke.chain(["--force"]).collect();
    case.broker.acls(&arguments);
}

#[test]
fn what_is_not_allowed_is_told_and_waited_for_and_what_is_documented_is_enough() {
    let broker = Broker::guarded();
    let mut case = case(&broker, "allowed");
    let commands = documented(&case);
    assert_eq!(commands.len(), 10, "{commands:?}");
    let reads_input = |c: &Vec<String>| c.contains(&"Read".into()) && c.contains(&case.input);
    let (late, early): (Vec<_>, Vec<_>) = commands
        .into_iter()
        .partition(|command| reads_input(command) && command.contains(&"--topic".into()));
    assert_eq!(late.len(), 1, "{late:?}");
    for command in &early {
        grant(&case, command);
    }
    let made = case.topics();
    let said = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "{said}");
    case.produce(6, 12, 0);
    // All but reading the input.
    let instance = case.start("a");
    let address = case.address("a");
    let said = eventually("the reason", || {
        let (status, text) = get(&address, "/readyz")?;
        text.contains("uthoriz").then_some((status, text))
    });
    assert_eq!(said.0, 503, "{said:?}");
    assert!(said.1.contains(&case.input), "{said:?}");
    grant(&case, &late[0]);
    until_ready(&address);
    stop(instance);
    case.run_to_the_end("a");
    case.all_folded();
    let output = case.limn("check", "a").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

#[test]
fn each_permission_that_is_missing_is_told_with_what_it_is_missing_on_and_nothing_is_lost() {
    let broker = Broker::guarded();
    let mut case = case(&broker, "denied");
    let commands = documented(&case);
    for command in &commands {
        grant(&case, command);
    }
    assert!(case.topics().status.success());
    // Of each of the first commands, what a service must be told that it is missing on: by its consumer, or by its producer.
    let input = &case.input;
    let missing = [
        [format!("reading {input} as"), format!("Read on {input} ")],
        [case.topic("changes"), case.topic("dead")],
        [case.topic("profiles"), case.topic("checkpoints")],
        [format!("as group {input}"), "Read on the group".to_owned()],
        [
            format!("id {input}-"),
            format!("Write on the transactional id {input}-"),
        ],
    ];
    for (round, (command, on)) in (0..).zip(commands.iter().zip(&missing)) {
        case.produce(6, 12, 12 * round);
        revoke(&case, command);
        let instance = case.start("a");
        let address = case.address("a");
        // It waits for the permission, and says so.
        let said = eventually("the reason", || {
            let (status, text) = get(&address, "/readyz")?;
            (status == 503 && text.contains("uthoriz")).then_some(text)
        });
        let named = on.iter().any(|on| said.contains(on));
        assert!(named, "{command:?}: {said}");
        grant(&case, command);
        until_ready(&address);
        stop(instance);
        case.run_to_the_end("a");
        case.all_folded();
    }
}
