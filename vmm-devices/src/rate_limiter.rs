//! `RateLimiter`: token buckets for bytes and operations, exact to the nanosecond.
//!
//! A bucket of `capacity` tokens, full at first, gains `capacity` tokens each `refill`, evenly, and never holds more. What is
//! missing is counted in tokens times nanoseconds of `refill`, where a nanosecond gives `capacity` and a token takes `refill`:
//! nothing is ever rounded, and 128 bits hold whatever two operands of 64 bits can come to.
//!
//! * A request of at most `capacity` tokens waits until the bucket has them.
//! * A larger one waits until the bucket is full, and takes what the bucket does not have from its future.
//! * `burst` more tokens can be had once. They are taken first, and are not refilled.
//! * A request takes bytes and operations together, or nothing.
//!
//! The clock is the caller's: [`Moment`], which must not be that of the calendar. One that goes back stands still here, and one
//! that jumps ahead fills the buckets and no more.

#[cfg(test)]
mod tests;

use std::time::Duration;

/// A moment, in nanoseconds since some other one.
pub type Moment = u64;

/// How much may pass in which time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    capacity: u64,
    /// Nanoseconds in which an empty bucket becomes full.
    refill: u64,
    burst: u64,
}

/// Why there is no such limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// A bucket without room never has a token.
    #[error("a rate limit of 0 tokens lets nothing pass: leave it out, or say how many")]
    NoCapacity,
    /// That would be no limit.
    #[error("a rate limit cannot be refilled in no time: leave it out, or say how long it takes")]
    NoRefill,
    /// More nanoseconds than are counted.
    #[error("a rate limit is refilled in {} s at most, not in {} s", u64::MAX / 1_000_000_000, .0.as_secs())]
    LongRefill(Duration),
}

impl Limit {
    /// `capacity` tokens each `refill`, and `burst` more once.
    ///
    /// # Errors
    /// Either is 0, or `refill` is longer than 64 bits of nanoseconds. No limit at all is said by its absence.
    pub fn new(capacity: u64, refill: Duration, burst: u64) -> Result<Self, LimitError> {
        if capacity == 0 {
            return Err(LimitError::NoCapacity);
        }
        if refill.is_zero() {
            return Err(LimitError::NoRefill);
        }
        let refill = u64::try_from(refill.as_nanos()).map_err(|_| LimitError::LongRefill(refill))?;
        Ok(Self { capacity, refill, burst })
    }

    /// Tokens of a full bucket.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.capacity
    }

    /// In which time an empty bucket becomes full.
    #[must_use]
    pub fn refill(&self) -> Duration {
        Duration::from_nanos(self.refill)
    }

    /// Tokens that can be had once.
    #[must_use]
    pub fn burst(&self) -> u64 {
        self.burst
    }

    fn capacity(&self) -> u128 {
        u128::from(self.capacity)
    }

    /// `tokens` in the unit of [`Bucket::missing`].
    fn scaled(&self, tokens: u128) -> u128 {
        tokens.saturating_mul(u128::from(self.refill))
    }
}

/// What a bucket holds, in whole tokens: what is kept of it when its limit changes, or when it is saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Balance {
    /// Tokens that it has, rounded down.
    pub available: u64,
    /// Tokens that it has given before it had them, rounded up. Not together with `available`.
    pub owed: u64,
    /// What is left of the burst.
    pub burst: u64,
}

/// One bucket.
#[derive(Clone, Debug)]
struct Bucket {
    limit: Limit,
    /// What is missing until it is full, in tokens times `limit.refill`; more than the whole if it owes some.
    missing: u128,
    burst: u64,
    /// When `missing` was right.
    at: Moment,
}

impl Bucket {
    fn full(limit: Limit, now: Moment) -> Self {
        Self { limit, missing: 0, burst: limit.burst, at: now }
    }

    /// A bucket that holds what `balance` says, as far as there is room.
    fn holding(limit: Limit, balance: Balance, now: Moment) -> Self {
        let missing = limit.capacity().saturating_sub(u128::from(balance.available));
        let missing = limit.scaled(missing.saturating_add(u128::from(balance.owed)));
        Self { limit, missing, burst: balance.burst.min(limit.burst), at: now }
    }

    fn balance(&mut self, now: Moment) -> Balance {
        self.refill(now);
        let (whole, refill) = (self.limit.scaled(self.limit.capacity()), u128::from(self.limit.refill));
        let tokens = |scaled: u128| u64::try_from(scaled).unwrap_or(u64::MAX);
        Balance {
            available: tokens(whole.saturating_sub(self.missing).checked_div(refill).unwrap_or(0)),
            owed: tokens(self.missing.saturating_sub(whole).div_ceil(refill)),
            burst: self.burst,
        }
    }

    fn refill(&mut self, now: Moment) {
        let elapsed = u128::from(now.saturating_sub(self.at));
        self.missing = self.missing.saturating_sub(elapsed.saturating_mul(self.limit.capacity()));
        self.at = self.at.max(now);
    }

    /// Tokens of a request that the burst does not pay.
    fn unpaid(&self, tokens: u64) -> u64 {
        tokens.saturating_sub(self.burst)
    }

    /// Nanoseconds until a request can go; the bucket is refilled.
    fn wait(&self, tokens: u64) -> u64 {
        let needed = u128::from(self.unpaid(tokens)).min(self.limit.capacity());
        let most = self.limit.scaled(self.limit.capacity().saturating_sub(needed));
        let nanoseconds = self.missing.saturating_sub(most).div_ceil(self.limit.capacity());
        u64::try_from(nanoseconds).unwrap_or(u64::MAX)
    }

    fn take(&mut self, tokens: u64) {
        let unpaid = self.unpaid(tokens);
        self.burst = self.burst.saturating_sub(tokens);
        self.missing = self.missing.saturating_add(self.limit.scaled(u128::from(unpaid)));
    }
}

/// Limits of a device or of one of its directions, both of which may be absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Of the bytes that it moves.
    pub bytes: Option<Limit>,
    /// Of the operations that it performs.
    pub operations: Option<Limit>,
}

/// What the buckets hold; see [`RateLimiter::balances`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Balances {
    /// Of the bytes.
    pub bytes: Option<Balance>,
    /// Of the operations.
    pub operations: Option<Balance>,
}

/// Says what may go now, and how long the rest has to wait. See the module documentation.
#[derive(Clone, Debug)]
pub struct RateLimiter {
    bytes: Option<Bucket>,
    operations: Option<Bucket>,
}

impl RateLimiter {
    /// Full buckets.
    #[must_use]
    pub fn new(limits: Limits, now: Moment) -> Self {
        let full = |limit: Option<Limit>| limit.map(|limit| Bucket::full(limit, now));
        Self { bytes: full(limits.bytes), operations: full(limits.operations) }
    }

    /// Buckets that hold what others held, of other limits or on another clock. What had no limit comes full. Tokens beyond
    /// the new capacity, or the new burst, are lost; debts are kept, and paid at the new rate.
    #[must_use]
    pub fn holding(limits: Limits, balances: Balances, now: Moment) -> Self {
        let holding = |limit: Option<Limit>, balance: Option<Balance>| {
            limit.map(|limit| match balance {
                Some(balance) => Bucket::holding(limit, balance, now),
                None => Bucket::full(limit, now),
            })
        };
        Self {
            bytes: holding(limits.bytes, balances.bytes),
            operations: holding(limits.operations, balances.operations),
        }
    }

    /// What may pass.
    #[must_use]
    pub fn limits(&self) -> Limits {
        let limit = |bucket: &Option<Bucket>| bucket.as_ref().map(|bucket| bucket.limit);
        Limits { bytes: limit(&self.bytes), operations: limit(&self.operations) }
    }

    /// What the buckets hold now.
    pub fn balances(&mut self, now: Moment) -> Balances {
        let balance = |bucket: &mut Option<Bucket>| bucket.as_mut().map(|bucket| bucket.balance(now));
        Balances { bytes: balance(&mut self.bytes), operations: balance(&mut self.operations) }
    }

    /// Other limits from now on, as [`holding`](Self::holding) what is held now. Who waits has to ask again.
    pub fn update(&mut self, limits: Limits, now: Moment) {
        *self = Self::holding(limits, self.balances(now), now);
    }

    /// Takes one operation of `bytes`, or nothing.
    ///
    /// # Errors
    /// How long until it can go, if nobody else takes anything meanwhile; to the nanosecond, rounded up.
    pub fn admit(&mut self, bytes: u64, now: Moment) -> Result<(), Duration> {
        let mut wait = 0;
        for (bucket, tokens) in [(&mut self.bytes, bytes), (&mut self.operations, 1)] {
            if let Some(bucket) = bucket {
                bucket.refill(now);
                wait = wait.max(bucket.wait(tokens));
            }
        }
        if wait != 0 {
            return Err(Duration::from_nanos(wait));
        }
        for (bucket, tokens) in [(&mut self.bytes, bytes), (&mut self.operations, 1)] {
            if let Some(bucket) = bucket {
                bucket.take(tokens);
            }
        }
        Ok(())
    }
}
