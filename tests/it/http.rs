//! What a running instance tells: health, metrics and profiles over HTTP, and its full engine through them.

use std::process::{Command, Output};

use crate::broker::{self, eventually};
use crate::case::{Case, PARTITIONS, stop};

pub fn get(address: &str, path: &str) -> Option<(u16, String)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let response = client.get(format!("http://{address}{path}")).send().await;
        let response = response.ok()?;
        Some((response.status().as_u16(), response.text().await.ok()?))
    })
}

/// Waits until an instance calls itself ready.
pub fn until_ready(address: &str) {
    eventually("readiness", || {
        (get(address, "/readyz")?.0 == 200).then_some(())
    });
}

/// The value of a metric, named with its labels.
pub fn metric(address: &str, name: &str) -> Option<f64> {
    let (status, text) = get(address, "/metrics")?;
    assert_eq!(status, 200);
    let value = text
        .lines()
        .find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
    value.map(|v| v.parse().unwrap())
}

fn profile(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_limn"))
        .arg("profile")
        .args(arguments)
        .env_remove("LIMN_CONFIG")
        .output()
        .unwrap()
}

fn told(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn an_instance_tells_its_health_its_metrics_and_the_profiles_of_its_users() {
    let mut case = Case::new("http");
    assert!(case.topics().status.success());
    case.produce(6, 12, 0);
    let instance = case.start("a");
    let address = case.address("a");
    let url = format!("http://{address}");
    assert_eq!(get(&address, "/healthz").unwrap().0, 200);
    until_ready(&address);
    // Of each user's twelve events, those of the last windows stay open.
    eventually("updates", || {
        (metric(&address, "limn_events_folded_total")? >= 42.0).then_some(())
    });
    assert_eq!(metric(&address, "limn_ready"), Some(1.0));
    assert_eq!(metric(&address, "limn_events_read_total"), Some(72.0));
    assert_eq!(
        metric(&address, "limn_events_total{outcome=\"accepted\"}"),
        Some(72.0)
    );
    // The lag is what the open windows hold back.
    eventually("the lag", || {
        let lag = |p| metric(&address, &format!("limn_consumer_lag{{partition=\"{p}\"}}"));
        let sum: f64 = (0..PARTITIONS).map(lag).sum::<Option<f64>>()?;
        (6.0..72.0).contains(&sum).then_some(())
    });
    let text = get(&address, "/metrics").unwrap().1;
    // What only a model in this process tells, and what only a restore sets.
    let elsewhere = [
        "limn_engine_batch",
        "limn_engine_cache_blocks",
        "limn_engine_step_seconds",
        "limn_restore_remaining_records",
    ];
    for name in limn::metrics::ALL {
        let there = text.contains(&format!("\n{}", name.name));
        assert!(there || elsewhere.contains(&name.name), "{name:?}");
    }
    let newest = told(&profile(&["user1", "--url", &url]));
    assert!(newest.starts_with("version "), "{newest}");
    let history = told(&profile(&["user1", "--url", &url, "--history", "--json"]));
    let versions: Vec<serde_json::Value> = history
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    assert!(versions.len() > 1, "{history}");
    for (n, version) in (1..).zip(&versions) {
        assert_eq!(version["user_id"], "user1");
        assert_eq!(version["version"], format!("{n}"));
    }
    // The address goes before a configuration that the environment names.
    let asked = Command::new(env!("CARGO_BIN_EXE_limn"))
        .args(["profile", "user1", "--url", &url])
        .env("LIMN_CONFIG", case.config("other"))
        .output()
        .unwrap();
    assert!(told(&asked).starts_with("version "));
    let nobody = profile(&["nobody", "--url", &url]);
    let error = String::from_utf8_lossy(&nobody.stderr).into_owned();
    assert_eq!(nobody.status.code(), Some(1));
    assert!(error.contains("no profile of this user"), "{error}");
    stop(instance);
    // Nobody answers now, so the view is opened; it tells the same.
    let config = case.config("a");
    let config = config.to_str().unwrap();
    assert!(get(&address, "/healthz").is_none());
    let kept = told(&profile(&[
        "user1",
        "--config",
        config,
        "--history",
        "--json",
    ]));
    assert!(kept.lines().count() >= versions.len(), "{kept}");
}

#[test]
fn a_full_engine_rests_the_input_and_keeps_its_place_in_the_group() {
    let mut case = Case::new("full");
    assert!(case.topics().status.success());
    case.padding = 8000;
    case.produce(8, 400, 0);
    // Six seconds are max.poll.interval.ms here: who does not go on polling loses the partitions.
    let slow = [
        ("LIMN_ENGINE__DELAY", "2s"),
        ("LIMN_LIMITS__WAITING_BYTES", "1MiB"),
    ];
    let instance = case.start_with("a", &slow);
    let address = case.address("a");
    eventually("the input to rest", || {
        (metric(&address, "limn_paused")? > 0.0).then_some(())
    });
    eventually("four rounds of the engine", || {
        (metric(&address, "limn_updates_total{outcome=\"model\"}")? >= 32.0).then_some(())
    });
    let waiting = metric(&address, "limn_windows_waiting_bytes").unwrap();
    // The limit, and what was under way when it was reached: batches of a mebibyte.
    assert!(waiting < 12_000_000.0, "{waiting} bytes wait");
    let read = metric(&address, "limn_events_read_total").unwrap();
    assert!(read < 8.0 * 400.0, "all of it was read");
    assert_eq!(metric(&address, "limn_restarts_total"), Some(0.0));
    stop(instance);
    assert!(
        !case.log("a").contains("given partitions"),
        "{}",
        case.log("a")
    );
    case.run_to_the_end("a");
    case.all_folded();
    assert_eq!(
        broker::shared().committed_offsets(&case.input, &case.input),
        case.produced
    );
}
