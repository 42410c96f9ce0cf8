//! Bytes behind data URLs, as they arrive (Xet spec, 10.2 and 10.7).
//!
//! A signature covers exact ranges only, so a transfer that broke is begun anew and what was given already is skipped:
//! the consumer sees one unbroken stream. A try is bounded by silence (`idle`) and by the least rate over the whole
//! range; the time that the *consumer* takes between two polls counts for neither. The permit is held from the request
//! to the last byte and never over a back-off, so a consumer must not leave a stream unpolled for long: the download
//! engine always drains a stream into memory that it has set aside for it beforehand.
//!
//! Several ranges at once are a `multipart/byteranges` answer. A server that answers otherwise is
//! asked for one range at a time from then on.

use super::exchange::{Answer, Lane, Permit, Request, Target, out_of_time, too_slow};
use super::retry::Failure;
use super::{HttpCas, byte_range};
use crate::byteranges::{self, content_range};
use crate::cas::{DataStream, gather};
use crate::xorb::MAX_SERIALISED;
use crate::{Error, deadline};
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use reqwest::Method;
use reqwest::header::{CONTENT_RANGE, CONTENT_TYPE, HeaderValue, RANGE};
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// What is said of these requests.
const WHAT: &str = "xorb data";
/// Most ranges of one request: their list must fit into a header.
const MAX_RANGES: usize = 500;
/// Most bytes of one multi-range answer, which is held whole.
const MAX_PARTS_LEN: u64 = 16 * 1024 * 1024;
/// Bytes around each part of a multipart answer that are put up with: boundary and headers.
const PART_HEAD: usize = 1024;
/// Single requests in flight for one list of ranges.
const SINGLES: usize = 4;

impl HttpCas {
    pub(super) fn stream_data<'a>(&'a self, url: &'a str, bytes: Range<u64>) -> DataStream<'a> {
        let len = match checked_len(&bytes) {
            Ok(0) => return stream::empty().boxed(),
            Ok(len) => len,
            Err(error) => return stream::iter([Err(error)]).boxed(),
        };
        let range = byte_range(&bytes).expect("it is not empty");
        let mut request = self.request(WHAT, Method::GET, Target::Signed(url)).header(RANGE, range);
        request.answer_len = len;
        request.lane = Lane::Download;
        let transfer = Transfer { cas: self, request, start: bytes.start, len, given: 0, open: None };
        stream::try_unfold(
            transfer,
            |mut transfer| async move { Ok(transfer.next().await?.map(|piece| (piece, transfer))) },
        )
        .boxed()
    }

    pub(super) async fn fetch_parts(&self, url: &str, ranges: &[Range<u64>]) -> Result<Vec<Bytes>, Error> {
        let lens = ranges.iter().map(checked_len).collect::<Result<Vec<_>, _>>()?;
        let total = lens.into_iter().fold(0, u64::saturating_add);
        let joined = (2..=MAX_RANGES).contains(&ranges.len())
            && total <= MAX_PARTS_LEN
            && ranges.iter().all(|range| !range.is_empty())
            && !self.single_ranges.load(Ordering::Relaxed);
        if !joined {
            return self.fetch_singly(url, ranges).await;
        }
        if let Some(parts) = self.fetch_joined(url, ranges, total).await? {
            return Ok(parts);
        }
        // Only what the same URL then gives singly proves that it was the joining that it didn't like.
        let parts = self.fetch_singly(url, ranges).await?;
        self.single_ranges.store(true, Ordering::Relaxed);
        Ok(parts)
    }

    async fn fetch_singly(&self, url: &str, ranges: &[Range<u64>]) -> Result<Vec<Bytes>, Error> {
        let ranges = ranges.to_vec();
        let count = ranges.len();
        let fetches = ranges.into_iter().map(|range| gather(self.stream_data(url, range)));
        let mut fetches = stream::iter(fetches).buffered(SINGLES);
        let mut all = Vec::with_capacity(count);
        while let Some(fetched) = fetches.next().await {
            all.push(fetched?);
        }
        Ok(all)
    }

    /// `None`: the server does not do that, or not with this URL.
    async fn fetch_joined(&self, url: &str, ranges: &[Range<u64>], total: u64) -> Result<Option<Vec<Bytes>>, Error> {
        let list: Vec<_> = ranges.iter().map(|range| format!("{}-{}", range.start, range.end - 1)).collect();
        let list = HeaderValue::try_from(format!("bytes={}", list.join(",")));
        let list = list.expect("digits and punctuation are legal in a header");
        let mut request = self.request(WHAT, Method::GET, Target::Signed(url)).header(RANGE, list);
        request.answer_len = total;
        request.lane = Lane::Download;
        // `total` was capped, and so was the number of ranges.
        let cap = total as usize + PART_HEAD * (ranges.len() + 1);
        self.call(request, |answer| read_parts(answer, ranges, cap)).await
    }
}

/// A range comes from a reconstruction: it may be anything.
fn checked_len(bytes: &Range<u64>) -> Result<u64, Error> {
    let len = bytes.end.checked_sub(bytes.start).filter(|&len| len <= MAX_SERIALISED as u64);
    len.ok_or_else(|| Error::Malformed { what: "reconstruction", why: "a range is longer than a xorb".to_owned() })
}

async fn read_parts(answer: Answer, ranges: &[Range<u64>], cap: usize) -> Result<Option<Vec<Bytes>>, Failure> {
    let header = |name| answer.headers().get(name).and_then(|value| value.to_str().ok());
    let boundary = header(CONTENT_TYPE).and_then(byteranges::boundary).map(str::to_owned);
    let (206, Some(boundary)) = (answer.status(), boundary) else { return Ok(None) };
    let body = answer.collect(cap).await?;
    let parts = byteranges::parse(&boundary, &body).map_err(Failure::transient)?;
    // Ascending, whatever the order on the wire was.
    let find = |range: &Range<u64>| {
        let at = parts.partition_point(|part| (part.range.start, part.range.end) < (range.start, range.end));
        parts.get(at).filter(|part| part.range == *range).map(|part| part.data.clone())
    };
    // Ranges that the server has merged or left out: it does its own thing, legally.
    Ok(ranges.iter().map(find).collect())
}

/// One range on its way.
struct Transfer<'a> {
    cas: &'a HttpCas,
    request: Request<'a>,
    start: u64,
    len: u64,
    /// Bytes that the consumer has.
    given: u64,
    open: Option<Open<'a>>,
}

/// A try whose body is coming.
struct Open<'a> {
    answer: Answer,
    /// Bytes of the body that came.
    come: u64,
    /// What is left of the time that the try may take.
    left: Duration,
    permit: Permit<'a>,
}

impl<'a> Transfer<'a> {
    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        while self.given < self.len {
            let piece = deadline::timely(self.piece()).await;
            match piece.unwrap_or_else(|| Err(Failure::Final(out_of_time(WHAT)))) {
                Ok(piece) => {
                    self.given += piece.len() as u64;
                    self.request.backoff.progressed();
                    if self.given == self.len
                        && let Some(open) = self.open.take()
                    {
                        open.permit.tell(None, self.len);
                    }
                    return Ok(Some(piece));
                }
                Err(failure) => {
                    if let Some(open) = self.open.take() {
                        open.permit.tell(Some(&failure), self.len);
                    }
                    let (dice, now) = (getrandom::u32().unwrap_or(0), Instant::now());
                    let wait = self.request.backoff.next(failure, dice, now, deadline::current())?;
                    tracing::debug!(what = WHAT, given = self.given, ?wait, "trying again");
                    sleep(wait).await;
                }
            }
        }
        Ok(None)
    }

    /// The next bytes that the consumer doesn't have; there are some.
    async fn piece(&mut self) -> Result<Bytes, Failure> {
        if self.open.is_none() {
            self.open = Some(self.open().await?);
        }
        let open = self.open.as_mut().expect("it was just opened");
        loop {
            let Some(mut piece) = open.piece().await? else { return Err(wrong_len(self.len)) };
            let came = open.come;
            open.come = came.saturating_add(piece.len() as u64);
            if open.come > self.len {
                return Err(wrong_len(self.len));
            }
            if open.come == self.len && open.answer.announced().is_none() && open.piece().await?.is_some() {
                return Err(wrong_len(self.len));
            }
            let known = self.given.saturating_sub(came).min(piece.len() as u64);
            // At most the piece's length.
            let piece = piece.split_off(known as usize);
            if !piece.is_empty() {
                return Ok(piece);
            }
        }
    }

    async fn open(&self) -> Result<Open<'a>, Failure> {
        let permit = self.cas.permit(self.request.lane).await;
        let (begun, budget) = (Instant::now(), self.request.budget());
        let answer = timeout(budget, self.cas.open(&self.request, None)).await;
        let answer = match answer.unwrap_or_else(|_| Err(too_slow(WHAT))) {
            Ok(answer) => self.checked(answer).await,
            Err(failure) => Err(failure),
        };
        match answer {
            Ok(answer) => Ok(Open { answer, come: 0, left: budget.saturating_sub(begun.elapsed()), permit }),
            Err(failure) => {
                permit.tell(Some(&failure), self.len);
                Err(failure)
            }
        }
    }

    /// The body must be exactly the range, whether the server calls it a part or all.
    async fn checked(&self, answer: Answer) -> Result<Answer, Failure> {
        if !matches!(answer.status(), 200 | 206) {
            return Err(Failure::Final(answer.refusal().await));
        }
        if answer.status() == 206
            && let Some(range) = answer.headers().get(CONTENT_RANGE)
            && range.to_str().ok().and_then(content_range) != Some(self.start..self.start + self.len)
        {
            return Err(Failure::damaged(WHAT, "the answer is another range than was asked for"));
        }
        match answer.announced() {
            Some(announced) if announced != self.len => Err(wrong_len(self.len)),
            _ => Ok(answer),
        }
    }
}

impl Open<'_> {
    /// The next bytes of the body, if it has any more.
    async fn piece(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            let begun = Instant::now();
            let piece = self.answer.piece_within(self.left).await?;
            self.left = self.left.saturating_sub(begun.elapsed());
            if piece.as_ref().is_none_or(|piece| !piece.is_empty()) {
                return Ok(piece);
            }
        }
    }
}

fn wrong_len(len: u64) -> Failure {
    Failure::damaged(WHAT, format!("the answer is not the {len} bytes that were asked for"))
}
