//! Runs random operations with random faults. At every line that the Hub applies, these rules must hold:
//!
//! - a path that no operation names doesn't change;
//! - a path shows its old content, its new one, or (deleted) nothing: never an older one that was hidden;
//! - a renamed file is readable under one of its two names at every moment;
//! - an operation that failed can be repeated, and then succeeds.

use crate::crypto::Format::{self, V1, V2};
use crate::hub::BatchOp;
use crate::store::commit::Place;
use crate::store::testing::{Fault, Keyed, hash_of, long_name, put_as, rename, shown};
use crate::store::{Change, Expect, Op, Outcome, PlainPath, View};
use crate::xet::Hash;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// Returns the paths that operations choose from: files, two directories, long names.
fn paths() -> Vec<String> {
    let long = long_name(230, 33);
    let mut paths: Vec<String> = ["a", "b", "d/a", "d/b", "d/e/a", "e/a"].map(str::to_owned).to_vec();
    paths.extend([long_name(195, 1), format!("{long}/x"), format!("{long}/y"), format!("d/{long}/x")]);
    paths
}

#[derive(Clone, Debug)]
enum Step {
    Put {
        at: usize,
        old_format: bool,
    },
    Delete {
        at: usize,
    },
    Rename {
        from: usize,
        to: usize,
    },
    Copy {
        from: usize,
        to: usize,
    },
    MoveDirectory {
        from: usize,
        to: usize,
    },
    /// Another client leaves a format-1 object at the path, perhaps hidden.
    Leave {
        at: usize,
    },
}

const DIRECTORIES: [&str; 4] = ["d", "e", "d/e", "n"];

fn step() -> impl Strategy<Value = Step> {
    let at = 0..paths().len();
    let directory = 0..DIRECTORIES.len();
    prop_oneof![
        4 => (at.clone(), any::<bool>()).prop_map(|(at, old_format)| Step::Put { at, old_format }),
        2 => at.clone().prop_map(|at| Step::Delete { at }),
        3 => (at.clone(), at.clone()).prop_map(|(from, to)| Step::Rename { from, to }),
        1 => (at.clone(), at.clone()).prop_map(|(from, to)| Step::Copy { from, to }),
        2 => (directory.clone(), directory).prop_map(|(from, to)| Step::MoveDirectory { from, to }),
        2 => at.prop_map(|at| Step::Leave { at }),
    ]
}

/// Fault of the n-th batch: none, an answer lost after some lines, or some lines refused.
#[derive(Clone, Debug)]
enum InjectedFault {
    None,
    Lose(usize),
    RefuseEvery(usize),
}

fn injected_fault() -> impl Strategy<Value = InjectedFault> {
    prop_oneof![
        3 => Just(InjectedFault::None),
        1 => (0usize..4).prop_map(InjectedFault::Lose),
        1 => (1usize..4).prop_map(InjectedFault::RefuseEvery),
    ]
}

type Shown = BTreeMap<String, Option<Hash>>;

struct World {
    view: Keyed,
    places: BTreeMap<String, Place>,
    contents: u32,
}

impl World {
    fn new() -> Self {
        let view = Keyed::of_format(Format::V2);
        let mut all: BTreeSet<String> = paths().into_iter().collect();
        for path in paths() {
            for (from, to) in DIRECTORIES.iter().flat_map(|from| DIRECTORIES.map(|to| (*from, to))) {
                all.extend(moved(&path, from, to));
            }
        }
        let places = all.into_iter().map(|path| (path.clone(), view.place(&path))).collect();
        Self { view, places, contents: 0 }
    }

    fn content(&mut self) -> String {
        self.contents += 1;
        format!("content {}", self.contents)
    }

    fn shown_in(&self, contents: &BTreeMap<String, Hash>) -> Shown {
        self.places.iter().map(|(path, place)| (path.clone(), shown(place, contents))).collect()
    }

    fn now(&self) -> Shown {
        self.shown_in(&self.view.hub.contents())
    }

    fn keys_below(&self, directory: &str) -> bool {
        [V1, V2].iter().any(|format| {
            let below = format!("{}/", self.view.key(directory, *format));
            self.view.hub.contents().keys().any(|key| key.starts_with(&below))
        })
    }
}

fn moved(path: &str, from: &str, to: &str) -> Option<String> {
    let path = PlainPath::new(path).unwrap();
    let (from, to) = (PlainPath::new(from).unwrap(), PlainPath::new(to).unwrap());
    path.rebase(&from, &to).filter(|moved| *moved != to).map(|moved| moved.as_str().to_owned())
}

/// Returns an operation that is possible now, and the content that each path must show afterwards.
fn operation(world: &mut World, step: &Step) -> Option<(Op, Shown)> {
    let (paths, mut after) = (paths(), world.now());
    let expect = |shown: Option<Hash>| shown.map_or(Expect::Absent, |hash| Expect::Is(hash.into()));
    match step {
        Step::Put { at, old_format } => {
            let (at, content) = (&paths[*at], world.content());
            let place = &world.places[at];
            // Content is sealed again if a path has format 2, and that needs a CAS.
            let newer = world.view.hub.contents().contains_key(&place.primary);
            let format = if *old_format && place.legacy.is_some() && !newer { V1 } else { V2 };
            let operation = put_as(at, &content, expect(after[at]), format);
            after.insert(at.clone(), Some(hash_of(&content)));
            Some((operation, after))
        }
        Step::Delete { at } => {
            let at = &paths[*at];
            let operation = Op { path: PlainPath::new(at).unwrap(), expect: Expect::Any, change: Change::Delete };
            after.insert(at.clone(), None);
            Some((operation, after))
        }
        Step::Rename { from, to } | Step::Copy { from, to } => {
            let (from, to) = (&paths[*from], &paths[*to]);
            let content = after[from].filter(|_| from != to)?;
            let contents = world.view.hub.contents();
            let legacy = |place: &Place| place.legacy.as_ref().is_some_and(|key| contents.contains_key(key));
            if legacy(&world.places[from]) && world.places[to].legacy.is_none() {
                return None;
            }
            let (expect, expect_to) = (expect(after[from]), expect(after[to]));
            let mut operation = rename(from, to, expect, expect_to);
            if let Step::Copy { .. } = step {
                operation.change = Change::Copy { to: PlainPath::new(to).unwrap(), expect_to, metadata: None };
            } else {
                after.insert(from.clone(), None);
            }
            after.insert(to.clone(), Some(content));
            Some((operation, after))
        }
        Step::MoveDirectory { from, to } => {
            let (from, to) = (DIRECTORIES[*from], DIRECTORIES[*to]);
            let inside = to == from || to.starts_with(&format!("{from}/"));
            if inside || world.keys_below(to) {
                return None;
            }
            for (path, content) in world.now() {
                if let Some(target) = moved(&path, from, to).filter(|_| content.is_some()) {
                    if !world.places.contains_key(&target) {
                        return None;
                    }
                    after.insert(path, None);
                    after.insert(target, content);
                }
            }
            Some((world.view.move_directory(from, to), after))
        }
        Step::Leave { .. } => None,
    }
}

/// Checks the rules that hold at every moment between `before` and `after`.
fn check_moment(before: &Shown, after: &Shown, now: &Shown, moves: bool) -> Result<(), TestCaseError> {
    for (path, content) in now {
        let allowed = [before[path], after[path]];
        prop_assert!(allowed.contains(content), "{path:.20} shows {content:?}, not one of {allowed:?}");
    }
    if moves {
        let readable: BTreeSet<Hash> = now.values().flatten().copied().collect();
        for (path, content) in before.iter().filter(|(path, content)| content.is_some() && after[*path].is_none()) {
            prop_assert!(readable.contains(&content.unwrap()), "the content of {path:.20} is lost");
        }
    }
    Ok(())
}

async fn run(steps: Vec<(Step, Vec<InjectedFault>)>) -> Result<(), TestCaseError> {
    let mut world = World::new();
    for (step, faults) in steps {
        if let Step::Leave { at } = step {
            let at = &paths()[at];
            if world.places[at].legacy.is_some() {
                let content = world.content();
                world.view.object(at, V1, &content);
            }
            continue;
        }
        let before = world.now();
        let Some((operation, after)) = operation(&mut world, &step) else { continue };
        world.view.hub.take_history();
        for fault in faults {
            let keys = world.places.values().flat_map(|place| {
                let sidecars = place.sidecars.iter().map(|sidecar| sidecar.key.clone());
                sidecars.chain([place.primary.clone()]).chain(place.legacy.clone())
            });
            world.view.hub.fault(match fault {
                InjectedFault::None => None,
                InjectedFault::Lose(lines) => Some(Fault::Lose(lines)),
                InjectedFault::RefuseEvery(nth) => Some(Fault::Refuse(keys.step_by(nth).collect())),
            });
        }
        let moves = matches!(operation.change, Change::Rename { .. } | Change::RenameDirectory { .. });
        let outcome = world.view.commit(operation.clone()).await;
        for moment in world.view.hub.take_history() {
            check_moment(&before, &after, &world.shown_in(&moment), moves)?;
        }
        if !is_done(&outcome) {
            prop_assert!(matches!(outcome, Outcome::Failed(ref error) if error.is_transient()), "{outcome:?}");
            world.view.hub.no_more_faults();
            let again = world.view.commit(operation.clone()).await;
            prop_assert!(is_done(&again), "repeated: {again:?}");
            for moment in world.view.hub.take_history() {
                check_moment(&before, &after, &world.shown_in(&moment), moves)?;
            }
        }
        world.view.hub.no_more_faults();
        prop_assert_eq!(world.now(), after, "after {:?}", step);
        for batch in world.view.hub.take_batches() {
            let adds = batch.iter().filter(|op| matches!(op, BatchOp::Add { .. })).count();
            prop_assert!(adds == 0 || adds == batch.len());
        }
    }
    Ok(())
}

fn is_done(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Done(_) | Outcome::Moved(_))
}

/// Runs the operations one by one and in one commit, and compares the results.
async fn run_both_ways(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let (mut one_by_one, combined) = (World::new(), World::new());
    let mut operations = Vec::new();
    for step in steps {
        let Some((operation, _)) = operation(&mut one_by_one, &step) else { continue };
        let outcome = one_by_one.view.commit(operation.clone()).await;
        prop_assert!(is_done(&outcome), "{outcome:?}");
        combined.view.learn(&operation);
        operations.push(operation);
    }
    for outcome in combined.view.view.commit(&operations).await {
        prop_assert!(is_done(&outcome), "{outcome:?}");
    }
    prop_assert_eq!(one_by_one.view.hub.contents(), combined.view.hub.contents());
    let batches = |world: &World| world.view.hub.take_batches().len();
    prop_assert!(batches(&combined) <= batches(&one_by_one));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, max_shrink_iters: 4000, ..ProptestConfig::default() })]

    #[test]
    fn random_commit_with_faults_is_safe_at_every_line(
        steps in prop::collection::vec((step(), prop::collection::vec(injected_fault(), 0..5)), 1..12)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(run(steps))?;
    }

    #[test]
    fn one_commit_of_many_operations_equals_single_commits(steps in prop::collection::vec(step(), 1..20)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(run_both_ways(steps))?;
    }
}
