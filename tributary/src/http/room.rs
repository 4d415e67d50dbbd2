//! Who has how much of the memory for the bodies of requests under way, and for the answers to their lines.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use schemas::Tenant;

/// How much of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Amount {
    /// For bodies. A short one counts for a KiB, since it takes some beside its bytes.
    pub(super) kib: usize,
    /// For answers: that to a line may take more than its bytes.
    pub(super) lines: usize,
}

impl Amount {
    /// What a body of so many bytes takes.
    pub(super) fn of_bytes(bytes: usize) -> Self {
        let kib = bytes.div_ceil(1024).max(1);
        Self { kib, lines: 0 }
    }

    /// What the answers to so many lines take.
    pub(super) fn of_lines(lines: usize) -> Self {
        Self { kib: 0, lines }
    }

    fn and(self, more: Self) -> Self {
        Self {
            kib: self.kib + more.kib,
            lines: self.lines + more.lines,
        }
    }

    fn less(self, part: Self) -> Self {
        Self {
            kib: self.kib.saturating_sub(part.kib),
            lines: self.lines.saturating_sub(part.lines),
        }
    }

    pub(super) fn times(self, factor: usize) -> Self {
        Self {
            kib: self.kib * factor,
            lines: self.lines * factor,
        }
    }

    fn is_within(self, most: Self) -> bool {
        self.kib <= most.kib && self.lines <= most.lines
    }
}

/// All of it. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Room {
    whole: Amount,
    /// What one tenant may have, so that none keeps the others out.
    of_tenant_max: Amount,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    all: Amount,
    /// Those that have something.
    of_tenants: BTreeMap<Tenant, Amount>,
}

/// A part of the room, until it is dropped.
#[derive(Debug)]
pub(super) struct Part {
    room: Room,
    tenant: Option<Tenant>,
    amount: Amount,
}

/// Others have it, or the tenant has as much as one may.
#[derive(Debug)]
pub(super) struct NoRoom;

impl Room {
    pub(super) fn new(whole: Amount, of_tenant_max: Amount) -> Self {
        Self {
            whole,
            of_tenant_max,
            taken: Arc::default(),
        }
    }

    /// Nothing yet, for a request of `tenant`; none where nobody knows whose it is.
    pub(super) fn part(&self, tenant: Option<Tenant>) -> Part {
        Part {
            room: self.clone(),
            tenant,
            amount: Amount::default(),
        }
    }

    #[cfg(test)]
    pub(super) fn left(&self) -> Amount {
        self.whole.less(self.taken().all)
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Part {
    /// Makes it as large as `amount`; where it is larger in something it stays so.
    pub(super) fn grow_to(&mut self, amount: Amount) -> Result<(), NoRoom> {
        let more = amount.less(self.amount);
        let mut taken = self.room.taken();
        let all = taken.all.and(more);
        let of_tenant = self.tenant.as_ref().map(|tenant| {
            let has = taken.of_tenants.get(tenant).copied().unwrap_or_default();
            (tenant.clone(), has.and(more))
        });
        let is_fair = |(_, of_tenant): &(Tenant, Amount)| of_tenant.is_within(self.room.of_tenant_max);
        if !all.is_within(self.room.whole) || !of_tenant.iter().all(is_fair) {
            return Err(NoRoom);
        }
        taken.all = all;
        taken.of_tenants.extend(of_tenant);
        drop(taken);
        self.amount = self.amount.and(more);
        Ok(())
    }

    /// `answers`, which have this part until they are sent.
    pub(super) fn until_sent(self, answers: Body) -> Body {
        Body::new(Answers { answers, _part: self })
    }
}

struct Answers {
    answers: Body,
    _part: Part,
}

impl HttpBody for Answers {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.answers).poll_frame(context)
    }

    // That they are at their end is not said beforehand: they are dropped then, though the connection has yet to send them.

    fn size_hint(&self) -> SizeHint {
        self.answers.size_hint()
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let mut taken = self.room.taken();
        taken.all = taken.all.less(self.amount);
        let Some(tenant) = &self.tenant else { return };
        if let Some(has) = taken.of_tenants.get_mut(tenant) {
            *has = has.less(self.amount);
            if *has == Amount::default() {
                taken.of_tenants.remove(tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn amount(kib: usize, lines: usize) -> Amount {
        Amount { kib, lines }
    }

    fn tenant(name: &str) -> Option<Tenant> {
        Some(Tenant::new(name).unwrap())
    }

    #[test]
    fn a_tenant_that_has_what_one_may_have_leaves_the_rest_to_the_others() {
        let room = Room::new(amount(4, 400), amount(2, 200));
        let mut of_acme = [room.part(tenant("acme")), room.part(tenant("acme"))];
        for part in &mut of_acme {
            part.grow_to(amount(1, 50)).unwrap();
        }
        assert!(of_acme[0].grow_to(amount(2, 50)).is_err());
        assert!(of_acme[0].grow_to(amount(1, 151)).is_err());
        of_acme[0].grow_to(amount(1, 150)).unwrap();
        assert!(room.part(tenant("acme")).grow_to(amount(1, 0)).is_err());
        let mut of_globex = room.part(tenant("globex"));
        of_globex.grow_to(amount(2, 200)).unwrap();
        assert!(room.part(tenant("initech")).grow_to(amount(1, 0)).is_err());
        drop(of_acme);
        room.part(tenant("acme")).grow_to(amount(2, 200)).unwrap();
        assert_eq!(room.left(), amount(2, 200));
        drop(of_globex);
        assert!(room.taken().of_tenants.is_empty());
    }

    #[test]
    fn who_is_nobody_knows_may_have_all_that_is_left() {
        let room = Room::new(amount(4, 400), amount(2, 200));
        let mut part = room.part(None);
        part.grow_to(amount(4, 400)).unwrap();
        assert!(room.part(None).grow_to(amount(1, 0)).is_err());
    }

    proptest! {
        #[test]
        fn what_is_taken_is_what_parts_have_and_never_more_than_may_be(
            steps in prop::collection::vec((0_usize..6, 0_usize..3, 0_usize..5, 0_usize..5), 0..60),
        ) {
            let room = Room::new(amount(6, 6), amount(3, 3));
            let tenants = [None, tenant("acme"), tenant("globex")];
            let mut parts: BTreeMap<usize, Part> = BTreeMap::new();
            for (number, of, kib, lines) in steps {
                if kib == 0 {
                    parts.remove(&number);
                } else {
                    let part = parts.entry(number).or_insert_with(|| room.part(tenants[of].clone()));
                    let _ = part.grow_to(amount(kib, lines));
                }
                let sum = |of: &dyn Fn(&Part) -> bool| {
                    let parts = parts.values().filter(|part| of(part));
                    parts.fold(Amount::default(), |sum, part| sum.and(part.amount))
                };
                let all = sum(&|_| true);
                prop_assert_eq!(room.left(), amount(6, 6).less(all));
                prop_assert!(all.is_within(amount(6, 6)));
                for tenant in &tenants[1..] {
                    let has = sum(&|part| part.tenant == *tenant);
                    prop_assert!(has.is_within(amount(3, 3)), "{has:?}");
                }
            }
        }
    }
}
