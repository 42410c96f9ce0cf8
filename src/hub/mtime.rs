//! Converts modification times to and from what the Hub stores.
//!
//! The Hub keeps whole milliseconds since 1970 and shows them as RFC 3339, so in the years 0001 to 9999. Local
//! files have nanoseconds and a much
//! wider range. Every program of this project rounds here, always down (also before 1970), so that a time that was
//! shown once is the time that
//! comes back later.

use std::time::{Duration, SystemTime};
use time::OffsetDateTime;

/// Granularity of a stored time.
pub const MTIME_GRANULARITY: Duration = Duration::from_millis(1);
const NANOS_PER_MILLI: i128 = 1_000_000;
/// First and last millisecond of the years 0001 to 9999.
const MILLIS: (i128, i128) = (-62_135_596_800_000, 253_402_300_799_999);
/// `hf buckets sync` takes times that differ by at most a second for equal (Hub API spec, 6), and sets the time of
/// what it downloads to the moment
/// of the download.
const SYNC_WINDOW: time::Duration = time::Duration::milliseconds(1001);
/// A time set not longer than this before its upload is that of the write itself, not one that was copied from
/// elsewhere: the longest that a
/// mount waits for quiet by default (30 s), and as long again for the upload.
const RECENT: time::Duration = time::Duration::seconds(60);
/// A replaced object's time not further ahead than this may be a result of [`replacing_mtime`]. Those lie
/// [`SYNC_WINDOW`] ahead, and a millisecond
/// more for each replacement that took less than a millisecond. The rest is for clocks that differ.
const AHEAD: time::Duration = time::Duration::seconds(60);
/// Smallest difference of two stored times.
const STEP: time::Duration = time::Duration::milliseconds(1);

/// Returns the time that the Hub stores for a local one: rounded down to milliseconds, and the nearest year that
/// it can show.
pub fn stored_mtime(time: SystemTime) -> OffsetDateTime {
    let nanos = match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => i128::try_from(after.as_nanos()).unwrap_or(i128::MAX),
        Err(before) => -i128::try_from(before.duration().as_nanos()).unwrap_or(i128::MAX),
    };
    from_millis(nanos.div_euclid(NANOS_PER_MILLI))
}

/// Returns the current time as the Hub stores it.
pub fn stored_now() -> OffsetDateTime {
    stored_mtime(SystemTime::now())
}

/// Returns milliseconds since 1970, rounded down.
pub fn mtime_millis(time: OffsetDateTime) -> i64 {
    let millis = time.unix_timestamp_nanos().div_euclid(NANOS_PER_MILLI).clamp(MILLIS.0, MILLIS.1);
    i64::try_from(millis).expect("clamped to years that 64 bits of milliseconds hold")
}

/// Returns the time of a number of milliseconds since 1970: the inverse of [`mtime_millis`].
pub fn mtime_from_millis(millis: i64) -> OffsetDateTime {
    from_millis(millis.into())
}

fn from_millis(millis: i128) -> OffsetDateTime {
    let nanos = millis.clamp(MILLIS.0, MILLIS.1) * NANOS_PER_MILLI;
    OffsetDateTime::from_unix_timestamp_nanos(nanos).expect("clamped to years that the type holds")
}

/// Returns the time to store for new content in place of an object with time `held`, for a file with time `wanted`.
///
/// Clients that compare size and time skip a new version of the same size whose time isn't newer than that of
/// their copy by more than they
/// tolerate. Their copy has the time of its download, which may be any moment until now. `wanted` is used where it
/// is newer than `held` and not
/// long past. Otherwise the result is newer than `now` by more than such clients tolerate.
///
/// The result is also newer than `held`. Where `held` is less than `AHEAD` ahead of `now`, one millisecond is
/// enough: it is a result of this
/// function, and no copy has such a time. A larger step would add up: each of many quick replacements would move
/// the object further into the
/// future. Where `held` is later, it was set so or by a clock that is ahead. The file that it was uploaded from
/// has the same time, so the result
/// is newer by more than clients tolerate.
pub fn replacing_mtime(wanted: OffsetDateTime, held: Option<OffsetDateTime>, now: OffsetDateTime) -> OffsetDateTime {
    let Some(held) = held else { return wanted };
    let later = |time: OffsetDateTime, by| time.checked_add(by).unwrap_or(time);
    if wanted >= later(held, SYNC_WINDOW) && now.checked_sub(RECENT).is_none_or(|recent| wanted >= recent) {
        return wanted;
    }
    let step = if held < later(now, AHEAD) { STEP } else { SYNC_WINDOW };
    mtime_from_millis(mtime_millis(later(now, SYNC_WINDOW).max(later(held, step))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use time::macros::datetime;

    fn local() -> impl Strategy<Value = SystemTime> {
        (any::<i64>(), 0..1_000_000_000u32).prop_map(|(seconds, nanos)| {
            let nanos = Duration::from_nanos(nanos.into());
            let whole = Duration::from_secs(seconds.unsigned_abs() >> 1);
            let epoch = SystemTime::UNIX_EPOCH;
            if seconds < 0 { epoch - whole + nanos } else { epoch + whole + nanos }
        })
    }

    fn near() -> impl Strategy<Value = OffsetDateTime> {
        (-5_000_000_000_000..5_000_000_000_000i64).prop_map(mtime_from_millis)
    }

    proptest! {
        #[test]
        fn stored_time_is_last_millisecond_not_after_local_time(time in local()) {
            let stored = stored_mtime(time);
            prop_assert_eq!(mtime_from_millis(mtime_millis(stored)), stored);
            let (first, last) = (from_millis(MILLIS.0), from_millis(MILLIS.1));
            let back = SystemTime::from(stored);
            prop_assert!(back <= time || stored == first);
            prop_assert!(time.duration_since(back).is_ok_and(|lost| lost < MTIME_GRANULARITY) || stored == first || stored == last);
            prop_assert_eq!(stored_mtime(back), stored);
        }

        #[test]
        fn local_times_of_common_years_lose_less_than_millisecond(
            seconds in -3_000_000_000..30_000_000_000i64, nanos in 0..1_000_000_000u32
        ) {
            let offset = Duration::from_secs(seconds.unsigned_abs());
            let whole = if seconds < 0 { SystemTime::UNIX_EPOCH - offset } else { SystemTime::UNIX_EPOCH + offset };
            let millis = i128::from(seconds) * 1000 + i128::from(nanos / 1_000_000);
            prop_assert_eq!(i128::from(mtime_millis(stored_mtime(whole + Duration::from_nanos(nanos.into())))), millis);
        }

        #[test]
        fn replacing_time_is_newer_than_held_and_than_any_copy(wanted in near(), held in near(), now in near()) {
            let time = replacing_mtime(wanted, Some(held), now);
            prop_assert!(time > held);
            prop_assert!(time > held + time::Duration::SECOND || held < now + AHEAD);
            prop_assert!(time > now + time::Duration::SECOND || (time == wanted && time >= now - RECENT));
            prop_assert_eq!(mtime_from_millis(mtime_millis(time)), time);
        }

        #[test]
        fn quick_replacements_add_one_millisecond_each(
            now in near(), pauses in prop::collection::vec(0..200i64, 1..200), skew in 0..55_000i64
        ) {
            let mut now = now;
            let first = now + time::Duration::milliseconds(skew);
            let mut held = replacing_mtime(now, Some(first), now);
            for (before, pause) in pauses.iter().enumerate() {
                now += time::Duration::milliseconds(*pause);
                let time = replacing_mtime(now, Some(held), now);
                prop_assert!(time > held && time >= now + SYNC_WINDOW);
                let most = time::Duration::milliseconds(before as i64 + 2);
                prop_assert!(time <= (now + SYNC_WINDOW).max(first) + most);
                held = time;
            }
        }
    }

    #[test]
    fn times_before_1970_are_rounded_down() {
        let time = SystemTime::UNIX_EPOCH - Duration::new(54, 749_999_999);
        assert_eq!(stored_mtime(time), datetime!(1969-12-31 23:59:05.25 UTC));
        assert_eq!(mtime_millis(datetime!(1969-12-31 23:59:59.999_999 UTC)), -1);
        assert_eq!(mtime_millis(datetime!(1970-01-01 0:00:00.000_999 UTC)), 0);
    }

    #[test]
    fn time_of_new_object_is_as_wanted() {
        let (old, now) = (datetime!(1980-01-01 0:00 UTC), datetime!(2026-01-01 0:00 UTC));
        assert_eq!(replacing_mtime(old, None, now), old);
        assert_eq!(replacing_mtime(now, Some(old), now), now);
        assert_eq!(replacing_mtime(old, Some(old), now), now + SYNC_WINDOW);
        assert_eq!(replacing_mtime(now, Some(now), now), now + SYNC_WINDOW);
        assert_eq!(replacing_mtime(now, Some(now + SYNC_WINDOW), now), now + SYNC_WINDOW + STEP);
        assert_eq!(replacing_mtime(old, Some(now + RECENT), now), now + RECENT + SYNC_WINDOW);
        // Newer than what is there and older than a copy of it may be.
        assert_eq!(replacing_mtime(datetime!(1990-01-01 0:00 UTC), Some(old), now), now + SYNC_WINDOW);
    }
}
