//! The buckets against a naive model, and at the numbers where arithmetic goes wrong.

use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1_000_000_000;

fn limit(capacity: u64, refill: u64, burst: u64) -> Limit {
    Limit::new(capacity, Duration::from_nanos(refill), burst).unwrap()
}

fn bytes(limit: Limit) -> Limits {
    Limits { bytes: Some(limit), operations: None }
}

/// Plays a bucket of small numbers by stepping through every nanosecond.
struct Naive {
    capacity: i128,
    refill: i128,
    burst: i128,
    /// In tokens times nanoseconds of refill; negative if it owes some.
    level: i128,
}

impl Naive {
    fn step(&mut self) {
        self.level = (self.level + self.capacity).min(self.capacity * self.refill);
    }

    fn admit(&mut self, tokens: i128) -> bool {
        let from_burst = tokens.min(self.burst);
        let rest = tokens - from_burst;
        let goes = self.level >= rest.min(self.capacity) * self.refill;
        if goes {
            self.burst -= from_burst;
            self.level -= rest * self.refill;
        }
        goes
    }
}

/// Mostly the numbers at which arithmetic goes wrong.
fn edge() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), Just(1), Just(2), Just(SECOND), Just(u64::MAX - 1), Just(u64::MAX), any::<u64>(),]
}

proptest! {
    #[test]
    fn a_bucket_does_what_a_naive_one_does_each_nanosecond(
        (capacity, refill, burst) in (1..20u64, 1..50u64, 0..30u64),
        requests in prop::collection::vec((0..40u64, 0..120u64), 1..40),
    ) {
        let mut naive = Naive {
            capacity: capacity.into(),
            refill: refill.into(),
            burst: burst.into(),
            level: i128::from(capacity) * i128::from(refill),
        };
        let mut limiter = RateLimiter::new(bytes(limit(capacity, refill, burst)), 0);
        let mut now = 0;
        for (tokens, pause) in requests {
            for _ in 0..pause {
                naive.step();
            }
            now += pause;
            let answer = limiter.admit(tokens, now);
            prop_assert_eq!(answer.is_ok(), naive.admit(tokens.into()));
            if let Err(wait) = answer {
                // To the nanosecond: not one before, and then at once.
                for _ in 1..wait.as_nanos() {
                    naive.step();
                    prop_assert!(!naive.admit(tokens.into()));
                }
                naive.step();
                prop_assert!(naive.admit(tokens.into()));
                now += wait.as_nanos() as u64;
                prop_assert_eq!(limiter.admit(tokens, now), Ok(()));
            }
        }
    }

    #[test]
    fn fault_b15_no_operand_overflows_and_nothing_passes_that_was_not_due(
        (capacity, refill, burst) in (edge(), edge(), edge()),
        (other_capacity, other_refill, other_burst) in (edge(), edge(), edge()),
        steps in prop::collection::vec((edge(), edge(), any::<bool>()), 1..30),
    ) {
        let Ok(first) = Limit::new(capacity, Duration::from_nanos(refill), burst) else {
            prop_assert!(capacity == 0 || refill == 0);
            return Ok(());
        };
        let second = Limit::new(other_capacity, Duration::from_nanos(other_refill), other_burst);
        let mut limiter = RateLimiter::new(Limits { bytes: Some(first), operations: second.ok() }, 0);
        let mut now = 0;
        for (tokens, moment, change) in steps {
            // The clock goes back in some of the steps.
            let latest = moment.max(now);
            let refused = limiter.admit(tokens, moment);
            if let Err(wait) = refused {
                let later = latest.saturating_add(u64::try_from(wait.as_nanos()).unwrap());
                if later != u64::MAX {
                    prop_assert!(limiter.clone().admit(tokens, later - 1).is_err());
                    prop_assert_eq!(limiter.admit(tokens, later), Ok(()));
                    now = later;
                }
            }
            now = now.max(latest);
            if let (true, Ok(second)) = (change, second) {
                let before = limiter.balances(now);
                limiter.update(bytes(second), now);
                let (before, after) = (before.bytes, limiter.balances(now).bytes.unwrap());
                if let Some(before) = before {
                    prop_assert!(after.available <= before.available && after.burst <= before.burst);
                }
            }
        }
    }

    #[test]
    fn what_passes_in_a_time_is_what_the_limit_says(
        (capacity, refill) in (1_000..1_000_000u64, 1_000_000..SECOND),
        share in 1..200u64,
    ) {
        let request = capacity / share;
        let mut limiter = RateLimiter::new(bytes(limit(capacity, refill, 0)), 0);
        let (mut now, mut passed) = (0u64, 0u64);
        while passed < 4 * capacity {
            match limiter.admit(request, now) {
                Ok(()) => passed += request,
                Err(wait) => now += wait.as_nanos() as u64,
            }
        }
        // The bucket was full at first: that much more has passed than its rate gives.
        let due = u128::from(capacity) + u128::from(now) * u128::from(capacity) / u128::from(refill);
        prop_assert!(u128::from(passed) <= due);
        prop_assert!(u128::from(passed) + 2 * u128::from(request) > due);
    }
}

#[test]
fn a_limit_of_nothing_or_in_no_time_is_refused() {
    let second = Duration::from_secs(1);
    assert_eq!(Limit::new(0, second, 5), Err(LimitError::NoCapacity));
    assert_eq!(Limit::new(5, Duration::ZERO, 0), Err(LimitError::NoRefill));
    assert_eq!(Limit::new(5, Duration::MAX, 0), Err(LimitError::LongRefill(Duration::MAX)));
    assert!(LimitError::LongRefill(Duration::MAX).to_string().contains("18446744073 s at most"));
}

#[test]
fn no_limits_let_everything_pass() {
    let mut limiter = RateLimiter::new(Limits::default(), 0);
    assert!((0..1_000).all(|_| limiter.admit(u64::MAX, 0).is_ok()));
}

#[test]
fn a_request_that_one_bucket_refuses_takes_nothing_from_the_other() {
    let limits = Limits { bytes: Some(limit(100, SECOND, 0)), operations: Some(limit(1, SECOND, 0)) };
    let mut limiter = RateLimiter::new(limits, 0);
    assert_eq!(limiter.admit(60, 0), Ok(()));
    assert_eq!(limiter.admit(10, 0), Err(Duration::from_secs(1)));
    assert_eq!(limiter.balances(0).bytes.unwrap().available, 40);
}

#[test]
fn a_burst_is_taken_first_and_once() {
    let mut limiter = RateLimiter::new(bytes(limit(10, SECOND, 5)), 0);
    assert_eq!(limiter.admit(4, 0), Ok(()));
    assert_eq!(limiter.balances(0).bytes, Some(Balance { available: 10, owed: 0, burst: 1 }));
    assert_eq!(limiter.admit(11, 0), Ok(()));
    assert_eq!(limiter.admit(1, 0), Err(Duration::from_millis(100)));
    assert_eq!(limiter.balances(100 * SECOND).bytes, Some(Balance { available: 10, owed: 0, burst: 0 }));
}

#[test]
fn a_request_beyond_the_capacity_goes_when_the_bucket_is_full_and_is_paid_afterwards() {
    let mut limiter = RateLimiter::new(bytes(limit(10, SECOND, 0)), 0);
    assert_eq!(limiter.admit(1, 0), Ok(()));
    assert_eq!(limiter.admit(25, 0), Err(Duration::from_millis(100)));
    assert_eq!(limiter.admit(25, SECOND / 10), Ok(()));
    assert_eq!(limiter.balances(SECOND / 10).bytes, Some(Balance { available: 0, owed: 15, burst: 0 }));
    assert_eq!(limiter.admit(1, SECOND / 10), Err(Duration::from_millis(1_600)));
}

#[test]
fn fault_b15_a_clock_that_jumps_gives_nothing_beyond_a_full_bucket() {
    let mut limiter = RateLimiter::new(bytes(limit(10, SECOND, 0)), 5 * SECOND);
    assert_eq!(limiter.admit(10, 5 * SECOND), Ok(()));
    assert_eq!(limiter.admit(1, 0), Err(Duration::from_millis(100)));
    assert_eq!(limiter.balances(u64::MAX).bytes.unwrap().available, 10);
    assert_eq!(limiter.admit(10, u64::MAX), Ok(()));
    assert!(limiter.admit(1, 0).is_err());
}

#[test]
fn fault_b15_a_change_while_throttled_neither_forgives_debts_nor_blocks_for_ever() {
    let mut limiter = RateLimiter::new(bytes(limit(10, SECOND, 0)), 0);
    assert_eq!(limiter.admit(30, 0), Ok(()));
    limiter.update(bytes(limit(1_000, SECOND, 0)), SECOND);
    assert_eq!(limiter.balances(SECOND).bytes, Some(Balance { available: 0, owed: 10, burst: 0 }));
    assert_eq!(limiter.admit(5, SECOND), Err(Duration::from_millis(15)));
    // Lower than what it holds: the rest is lost.
    limiter.update(bytes(limit(10, SECOND, 0)), 10 * SECOND);
    assert_eq!(limiter.balances(10 * SECOND).bytes.unwrap().available, 10);
    limiter.update(Limits::default(), 10 * SECOND);
    assert_eq!(limiter.admit(u64::MAX, 10 * SECOND), Ok(()));
}

#[test]
fn fault_b15_a_saved_limiter_goes_on_where_it_was_on_another_clock() {
    let limits = bytes(limit(10, SECOND, 7));
    let mut limiter = RateLimiter::new(limits, 1_000 * SECOND);
    assert_eq!(limiter.admit(12, 1_000 * SECOND), Ok(()));
    let mut restored = RateLimiter::holding(limits, limiter.balances(1_000 * SECOND), 3);
    assert_eq!(restored.balances(3), limiter.balances(1_000 * SECOND));
    assert_eq!(restored.admit(6, 3), limiter.admit(6, 1_000 * SECOND));
}
