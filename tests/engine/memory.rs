//! What a hostile answer may cost: each is given to a client in a process of its own, whose peak memory is looked at.

use super::*;
use std::process::Stdio;
use tokio::process::Command;

/// Tells a child process what to do: `read`, `patience` or `write`, and the CAS's URL, token and file.
const TASK: &str = "HFCRYPT_TEST_ENGINE_TASK";
/// Peak resident memory of a client in MiB, whatever it is answered. A file of 300 KB is read or
/// written, so nearly all of it is what the process itself and the longest answer that is believed
/// take: a reconstruction of 32 MiB, and what it parses to.
const MOST: u64 = 128;
/// What a client may take that is answered a range of data: never more than was asked for.
const MOST_FOR_DATA: u64 = 48;

/// One token, whatever becomes of it.
struct Fixed(CasToken);

#[async_trait]
impl TokenSource for Fixed {
    async fn token(&self, _: Scope, refused: Option<&CasToken>) -> Result<CasToken, Error> {
        if refused.is_none() { Ok(self.0.clone()) } else { Err(Error::Unauthorized) }
    }
}

/// Peak memory of this process in MiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() / 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs as a child process of the tests below"]
async fn child_that_transfers_a_file() {
    let Ok(task) = std::env::var(TASK) else { return };
    let [what, url, token, file] = task.split(' ').collect::<Vec<_>>().try_into().unwrap();
    let token = CasToken { url: url.to_owned(), token: token.to_owned(), expires: u64::MAX };
    let endpoint = open("http://127.0.0.1").await;
    let tokens: Arc<dyn TokenSource> = Arc::new(Fixed(token));
    let client = Client::new(&endpoint, &tokens);
    let outcome = match what {
        "read" => client.download(&file.parse().unwrap(), 300_000).await.map(drop),
        // It would go on for hours: how much it holds shows before.
        "patience" => {
            let (file, mut sink) = (file.parse().unwrap(), tokio::io::sink());
            let download = client.knowing.download(&file, 64 << 20, &mut sink);
            let slow = |_| Error::from(std::io::Error::from(std::io::ErrorKind::TimedOut));
            tokio::time::timeout(Duration::from_secs(4), download).await.map_err(slow).flatten()
        }
        // What nobody has uploaded yet, so that every route is taken.
        _ => client.upload(&random_bytes(std::process::id().into(), 300_000)).await.map(drop),
    };
    let outcome = if outcome.is_ok() { "fine" } else { "failed" };
    println!("\n{outcome} {}", peak());
}

/// The outcome and peak memory in MiB of a client that meets `fault` on `route` for ever.
async fn cost(rig: &Rig, route: &str, fault: &Fault) -> (String, u64) {
    rig.faults.clear();
    let content = random_bytes(2, 300_000);
    let file = rig.client.upload(&content).await.unwrap();
    let what = if [RECONSTRUCTION, DATA].contains(&route) { "read" } else { "write" };
    cost_of(rig, what, route, fault, &file).await
}

async fn cost_of(rig: &Rig, what: &str, route: &str, fault: &Fault, file: &Hash) -> (String, u64) {
    let token = rig.tokens.token(Scope::Write, None).await.unwrap();
    rig.faults.add(Rule::always(route, fault.clone()));
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "memory::child_that_transfers_a_file"])
        .args(["--ignored", "--nocapture"])
        .env(TASK, format!("{what} {} {} {file}", token.url, token.token))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = in_time(child).await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = said.lines().find(|line| line.starts_with("fine ") || line.starts_with("failed "));
    let (outcome, peak) = line.unwrap_or_else(|| panic!("{fault:?} on {route}: {said}")).split_once(' ').unwrap();
    (outcome.to_owned(), peak.parse().unwrap())
}

fn zeros(status: u16, announced: Option<u64>) -> Fault {
    Fault::Zeros { status, announced, every: Duration::ZERO }
}

#[tokio::test(flavor = "multi_thread")]
async fn data_without_end_costs_no_more_than_what_was_asked_for() {
    let rig = Rig::open().await;
    let (outcome, plain) = cost(&rig, CHUNK, &Fault::Delay(Duration::ZERO)).await;
    assert_eq!(outcome, "fine");
    assert!(plain < MOST_FOR_DATA, "{plain} MiB for an ordinary upload");
    for announced in [None, Some(64 << 20), Some(1 << 40)] {
        for status in [200, 206, 500] {
            let (outcome, peak) = cost(&rig, DATA, &zeros(status, announced)).await;
            assert_eq!(outcome, "failed", "{status} {announced:?}");
            assert!(peak < MOST_FOR_DATA, "{peak} MiB for {status} {announced:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_of_the_store_without_end_are_capped() {
    let rig = Rig::open().await;
    for (route, status) in [(RECONSTRUCTION, 200), (GRANT, 201), (SHARD, 200), (COMMIT, 500), (RECONSTRUCTION, 500)] {
        for announced in [None, Some(1 << 40)] {
            let (outcome, peak) = cost(&rig, route, &zeros(status, announced)).await;
            assert_eq!(outcome, "failed", "{route} {status} {announced:?}");
            assert!(peak < MOST, "{peak} MiB for {route} {status} {announced:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dedup_answers_without_end_cost_little_and_spoil_nothing() {
    let rig = Rig::open().await;
    for fault in [zeros(200, None), zeros(200, Some(1 << 40)), Fault::Stall { after: 0 }] {
        let (outcome, peak) = cost(&rig, CHUNK, &fault).await;
        assert_eq!(outcome, "fine", "{fault:?}");
        assert!(peak < MOST, "{peak} MiB for {fault:?}");
    }
}

/// A file of 64 MiB whose data comes in drops: what has come by then is held, and nothing for what is only announced.
#[tokio::test(flavor = "multi_thread")]
async fn large_data_in_drops_is_not_paid_for_in_advance() {
    let rig = Rig::open().await;
    let content = random_bytes(3, 64 << 20);
    let file = rig.client.upload(&content).await.unwrap();
    drop(content);
    let drops = Fault::Drip { bytes: 1_000, every: Duration::from_millis(20) };
    let (outcome, peak) = cost_of(&rig, "patience", DATA, &drops, &file).await;
    assert_eq!(outcome, "failed");
    assert!(peak < MOST_FOR_DATA, "{peak} MiB");
}
