//! Runs power-cut histories over the real view, with a key and without, and over the embedded Hub by HTTP. Each is on
//! a machine of its own, whose power is cut.

use super::{Event, Far, Step, block_on, cases, event, history};
use crate::store::testing::power::{Machine, open_on};
use crate::store::{Hidden, Kind, PlainPath, View};
use async_trait::async_trait;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Returns an event of either machine.
fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        30 => event(),
        3 => Just(Event::Do(Step::Flush)),
        2 => any::<u64>().prop_map(Event::CutFar),
        3 => (0..30u64, any::<u64>()).prop_map(|(calls, seed)| Event::CutFarAfter(calls, seed)),
        1 => any::<u64>().prop_map(Event::CutBoth),
    ]
}

/// A Hub on a machine of its own.
struct Hub {
    machine: Machine,
    with_key: bool,
    /// The effect of its next end on its disk.
    seed: u64,
}

#[async_trait]
impl Far for Hub {
    async fn view(&mut self) -> Arc<dyn View> {
        open_on(&self.machine, self.with_key).await
    }
    async fn files(&mut self) -> BTreeMap<String, Vec<u8>> {
        let view = self.view().await;
        let (mut found, mut open) = (BTreeMap::new(), vec![PlainPath::root()]);
        while let Some(directory) = open.pop() {
            let listing = view.list(&directory).await.unwrap();
            assert_eq!(listing.hidden, Hidden::default());
            for entry in listing.entries {
                let path = directory.join(&entry.name).unwrap();
                match entry.kind {
                    Kind::Directory { .. } => open.push(path),
                    Kind::File { version, .. } => {
                        let object = view.open(&version.unwrap()).await.unwrap();
                        let mut bytes = Vec::new();
                        while (bytes.len() as u64) < object.len() {
                            bytes.extend_from_slice(&object.read(bytes.len() as u64, 1 << 20).await.unwrap());
                        }
                        found.insert(path.as_str().to_owned(), bytes);
                    }
                }
            }
        }
        found
    }
    async fn cut(&mut self, seed: u64) {
        self.machine.cut(seed).await;
    }
    fn end_after(&mut self, calls: u64, seed: u64) {
        self.seed = seed;
        self.machine.disk().end_after(calls);
    }
    async fn ended(&self) {
        self.machine.disk().ended().await;
    }
    async fn restart(&mut self) {
        self.machine.cut(self.seed).await;
    }
    async fn stay(&mut self) {
        self.machine.disk().end_never();
        if self.machine.disk().has_ended() {
            self.restart().await;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 100, ..ProptestConfig::default() })]

    #[test]
    fn mount_and_hub_recover_from_power_cuts_of_both(
        events in proptest::collection::vec(any_event(), 1..30),
        with_key in any::<bool>(),
    ) {
        block_on(async {
            let hub = Hub { machine: Machine::new().await, with_key, seed: 0 };
            history(hub, events).await
        })?;
    }
}
