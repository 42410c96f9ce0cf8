//! How many transfers run at once: raised while that makes them faster in sum, cut when the other side is overrun.
//!
//! [`Controller`] decides, and only counts: time is handed in. [`Gate`] holds requests to it. Uploads and downloads
//! have one gate each, since they meet different limits.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Most transfers of one direction, as the reference has it: more sockets than this are no faster anywhere.
pub(super) const MOST: u32 = 64;
/// Shortest time over which throughput is judged: shorter ones measure bursts.
const LEAST_WINDOW: Duration = Duration::from_millis(250);
/// More transfers must bring at least this share of what they would if throughput grew with their
/// number: below it is noise.
const GAIN: f64 = 1.0 / 3.0;
/// Transfers per one that is added at a time: a step of one among dozens could not be told from noise.
const STEP: u32 = 8;
/// Windows for which a limit found to be enough is left alone before one more is tried again: links change.
const REST: u32 = 8;

/// Judges windows of transfers. A window is at least [`LEAST_WINDOW`] and as many finished transfers as the limit.
pub(super) struct Controller {
    limit: u32,
    most: u32,
    phase: Phase,
    window: Window,
    /// When the limit was last cut.
    cut: Option<Instant>,
}

/// What the limit does after this window.
enum Phase {
    /// It was raised by `step`; `wanted`: bytes per second that justify it, if that is known.
    Climbing { step: u32, wanted: Option<f64> },
    /// It stays, for so many windows.
    Resting { left: u32 },
}

struct Window {
    began: Instant,
    bytes: u64,
    finished: u32,
    /// All transfers allowed were under way at some time: only then does the limit matter.
    is_full: bool,
}

impl Window {
    fn new(began: Instant) -> Self {
        Self { began, bytes: 0, finished: 0, is_full: false }
    }
}

impl Controller {
    pub(super) fn new(start: u32, most: u32, now: Instant) -> Self {
        let most = most.max(1);
        let limit = start.clamp(1, most);
        Self { limit, most, phase: Phase::Climbing { step: 0, wanted: None }, window: Window::new(now), cut: None }
    }

    pub(super) fn limit(&self) -> u32 {
        self.limit
    }

    /// A transfer of `bytes` is done; `is_full`: while it ran, no further one was allowed.
    pub(super) fn finished(&mut self, bytes: u64, is_full: bool, now: Instant) {
        self.window.bytes = self.window.bytes.saturating_add(bytes);
        self.window.finished += 1;
        self.window.is_full |= is_full;
        let lasted = now.saturating_duration_since(self.window.began);
        if self.window.finished >= self.limit && lasted >= LEAST_WINDOW {
            let window = std::mem::replace(&mut self.window, Window::new(now));
            if window.is_full {
                self.judge(window.bytes as f64 / lasted.as_secs_f64());
            }
        }
    }

    fn judge(&mut self, rate: f64) {
        match self.phase {
            Phase::Climbing { step, wanted: Some(wanted) } if rate < wanted => {
                // The last step brought nothing.
                self.limit -= step;
                self.phase = Phase::Resting { left: REST };
            }
            Phase::Resting { left } if left > 0 => self.phase = Phase::Resting { left: left - 1 },
            _ if self.limit < self.most => {
                let step = (self.limit / STEP).max(1).min(self.most - self.limit);
                let wanted = rate * (1.0 + GAIN * f64::from(step) / f64::from(self.limit));
                self.limit += step;
                self.phase = Phase::Climbing { step, wanted: Some(wanted) };
            }
            _ => self.phase = Phase::Resting { left: REST },
        }
    }

    /// A transfer that began then was turned away or stalled. All that were under way together count as one.
    pub(super) fn refused(&mut self, began: Instant, now: Instant) {
        if self.cut.is_some_and(|cut| began < cut) {
            return;
        }
        self.cut = Some(now);
        self.limit = (self.limit / 2).max(1);
        self.phase = Phase::Resting { left: REST };
        self.window = Window::new(now);
    }
}

/// Lets as many requests through as its controller allows; in turn.
pub(super) struct Gate {
    permits: Semaphore,
    state: Mutex<State>,
}

struct State {
    controller: Controller,
    /// Permits to be taken back when they are returned.
    owed: u32,
}

impl Gate {
    pub(super) fn new(start: u32, most: usize) -> Arc<Self> {
        let most = u32::try_from(most).unwrap_or(MOST).min(MOST);
        let controller = Controller::new(start, most, Instant::now());
        let permits = Semaphore::new(controller.limit() as usize);
        Arc::new(Self { permits, state: Mutex::new(State { controller, owed: 0 }) })
    }

    /// Waits for a turn. Dropping the pass gives it back; nothing is learnt from one that was
    /// neither finished nor refused.
    pub(super) async fn enter(self: &Arc<Self>) -> Pass {
        self.permits.acquire().await.expect("the semaphore is never closed").forget();
        Pass { gate: Arc::clone(self), began: Instant::now() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the controller something, and follows it.
    fn adapt(&self, tell: impl FnOnce(&mut Controller, Instant)) {
        let mut state = self.state();
        let before = state.controller.limit();
        tell(&mut state.controller, Instant::now());
        let after = state.controller.limit();
        if after >= before {
            let more = after - before;
            let kept = more.min(state.owed);
            state.owed -= kept;
            self.permits.add_permits((more - kept) as usize);
        } else {
            let less = before - after;
            let idle = self.permits.forget_permits(less as usize);
            state.owed += less - idle as u32;
        }
    }

    fn leave(&self) {
        let mut state = self.state();
        match state.owed {
            0 => self.permits.add_permits(1),
            _ => state.owed -= 1,
        }
    }
}

/// A request that was let through.
pub(super) struct Pass {
    gate: Arc<Gate>,
    began: Instant,
}

impl Pass {
    /// It moved `bytes`.
    pub(super) fn finished(self, bytes: u64) {
        let is_full = self.gate.permits.available_permits() == 0;
        self.gate.adapt(|controller, now| controller.finished(bytes, is_full, now));
    }

    /// It was turned away for load, or stalled.
    pub(super) fn refused(self) {
        self.gate.adapt(|controller, now| controller.refused(self.began, now));
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.gate.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use proptest::prelude::*;

    /// Transfers of 1 MiB over a link where `rate(n)` bytes per second pass when n are under way, for some windows.
    fn limits(rate: impl Fn(u32) -> f64, windows: usize) -> Vec<u32> {
        let mut now = Instant::now();
        let mut controller = Controller::new(2, 64, now);
        let mut limits = Vec::new();
        for _ in 0..windows {
            let limit = controller.limit();
            let each = rate(limit) as u64 / u64::from(limit);
            now += Duration::from_secs(1);
            (0..limit).for_each(|_| controller.finished(each, true, now));
            limits.push(controller.limit());
        }
        limits
    }

    #[test]
    fn limit_rises_while_throughput_does_and_stays_where_it_ends() {
        let capped = limits(|n| 1e6 * f64::from(n.min(10)), 200);
        assert!(capped[..8].is_sorted_by(|a, b| a + 1 == *b), "{capped:?}");
        assert!(capped[20..].iter().all(|limit| (10..=11).contains(limit)), "{capped:?}");
        let endless = limits(|n| 1e6 * f64::from(n), 200);
        assert_eq!(endless.last(), Some(&64));
    }

    #[test]
    fn more_transfers_than_are_needed_are_not_asked_for() {
        let flat = limits(|_| 1e8, 200);
        assert!(flat.iter().all(|&limit| limit <= 3), "{flat:?}");
    }

    #[test]
    fn transfers_turned_away_together_cut_the_limit_once() {
        let began = Instant::now();
        let mut controller = Controller::new(32, 64, began);
        let later = began + Duration::from_secs(1);
        (0..10).for_each(|_| controller.refused(began, later));
        assert_eq!(controller.limit(), 16);
        controller.refused(later + Duration::from_secs(1), later + Duration::from_secs(2));
        assert_eq!(controller.limit(), 8);
    }

    #[test]
    fn limit_that_is_not_reached_is_not_raised() {
        let mut now = Instant::now();
        let mut controller = Controller::new(4, 64, now);
        for bytes in 0..1000 {
            now += Duration::from_millis(300);
            controller.finished(bytes << 20, false, now);
        }
        assert_eq!(controller.limit(), 4);
    }

    proptest! {
        #[test]
        fn limit_keeps_its_bounds_and_moves_by_steps_or_halves(
            start in 0u32..100, most in 0u32..100,
            events in prop::collection::vec((0u64..1 << 40, any::<bool>(), prop::bool::weighted(0.1), 0u64..1000, 0u64..1000), 0..300),
        ) {
            let mut now = Instant::now();
            let mut controller = Controller::new(start, most, now);
            for (bytes, is_full, refused, age, passed) in events {
                let before = controller.limit();
                let began = now;
                now += Duration::from_millis(passed);
                if refused {
                    controller.refused(began.checked_sub(Duration::from_millis(age)).unwrap_or(began), now);
                    prop_assert!(controller.limit() == before || controller.limit() == (before / 2).max(1));
                } else {
                    controller.finished(bytes, is_full, now);
                    prop_assert!(controller.limit().abs_diff(before) <= (before / STEP).max(1));
                }
                prop_assert!((1..=most.max(1)).contains(&controller.limit()));
            }
        }

        #[test]
        fn as_many_pass_as_are_allowed_however_they_leave(
            events in prop::collection::vec((0u8..4, any::<prop::sample::Index>()), 0..200),
        ) {
            let gate = Gate::new(4, 16);
            let mut inside = Vec::new();
            for (event, which) in events {
                match (event, inside.is_empty()) {
                    (0, _) | (_, true) => inside.extend(gate.enter().now_or_never()),
                    (event, false) => {
                        let pass: Pass = inside.swap_remove(which.index(inside.len()));
                        match event {
                            1 => pass.finished(1000),
                            2 => pass.refused(),
                            _ => drop(pass),
                        }
                    }
                }
                let state = gate.state();
                let held = inside.len() as u32;
                prop_assert_eq!(gate.permits.available_permits() as u32 + held, state.controller.limit() + state.owed);
            }
            inside.clear();
            prop_assert_eq!(gate.permits.available_permits() as u32, gate.state().controller.limit());
        }
    }

    #[tokio::test]
    async fn waiting_for_a_turn_can_be_given_up() {
        let gate = Gate::new(1, 1);
        let pass = gate.enter().await;
        {
            let mut waiting = Box::pin(gate.enter());
            assert!((&mut waiting).now_or_never().is_none());
        }
        drop(pass);
        assert!(gate.enter().now_or_never().is_some());
    }
}
