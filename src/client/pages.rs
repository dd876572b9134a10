//! Scans: page by page, over any number of regions.

use super::api::Client;
use super::odd;
use super::request::{BOUND_BYTES_MAX, Body, Response};
use crate::error::{Error, Result};
use crate::kv::Direction;
use crate::store::ReadLevel;
use crate::types::KeyRange;
use bytes::Bytes;
use std::collections::VecDeque;

/// Items of a page unless said otherwise.
const PAGE_ITEMS: usize = 1024;
/// Bytes of a page unless said otherwise.
const PAGE_BYTES: usize = 1 << 20;

/// A scan under way.
///
/// * Keys come in order, each once; each page is of one instant, later pages of later ones.
#[derive(Debug)]
pub struct Pages {
    client: Client,
    rest: Option<KeyRange>,
    direction: Direction,
    level: ReadLevel,
    items: usize,
    bytes: usize,
    page: VecDeque<(Bytes, Bytes)>,
}

impl Pages {
    pub(super) fn new(
        client: Client,
        range: KeyRange,
        direction: Direction,
        level: ReadLevel,
    ) -> Pages {
        Pages {
            client,
            rest: (!range.is_empty()).then_some(range),
            direction,
            level,
            items: PAGE_ITEMS,
            bytes: PAGE_BYTES,
            page: VecDeque::new(),
        }
    }

    /// Fetches this many items at a time, at most 65,536.
    pub fn page_size(mut self, items: usize) -> Pages {
        self.items = items.clamp(1, super::request::PAGE_ITEMS_MAX);
        self
    }

    /// The next page, never empty; `None` after the last. After an error the same page is asked again.
    pub async fn next_page(&mut self) -> Result<Option<Vec<(Bytes, Bytes)>>> {
        if !self.page.is_empty() {
            return Ok(Some(std::mem::take(&mut self.page).into()));
        }
        while let Some(range) = self.rest.clone() {
            for (name, bound) in [("start", &range.start), ("end", &range.end)] {
                if bound.len() > BOUND_BYTES_MAX {
                    let what = format!(
                        "{name} of a scan of {} bytes: at most {BOUND_BYTES_MAX}",
                        bound.len()
                    );
                    return Err(Error::InvalidArgument(what));
                }
            }
            let body = Body::Scan {
                level: self.level,
                direction: self.direction,
                range,
                items: self.items,
                bytes: self.bytes,
            };
            let Response::Page { items, rest } = self.client.call(body).await? else {
                return Err(odd());
            };
            self.rest = rest;
            if !items.is_empty() {
                return Ok(Some(items));
            }
        }
        Ok(None)
    }

    /// The next key and its value; `None` after the last.
    pub async fn next(&mut self) -> Result<Option<(Bytes, Bytes)>> {
        if self.page.is_empty() {
            match self.next_page().await? {
                Some(page) => self.page = page.into(),
                None => return Ok(None),
            }
        }
        Ok(self.page.pop_front())
    }

    /// Everything that is left. Mind the memory.
    pub async fn collect(mut self) -> Result<Vec<(Bytes, Bytes)>> {
        let mut all = Vec::new();
        while let Some(page) = self.next_page().await? {
            all.extend(page);
        }
        Ok(all)
    }
}

/// A scan as an iterator; blocks for each page. Ends after an error.
#[derive(Debug)]
pub struct Rows {
    pages: Option<Pages>,
}

impl Rows {
    pub(super) fn new(pages: Pages) -> Rows {
        Rows { pages: Some(pages) }
    }
}

impl Iterator for Rows {
    type Item = Result<(Bytes, Bytes)>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = super::wait(self.pages.as_mut()?.next()).transpose();
        if !matches!(next, Some(Ok(_))) {
            self.pages = None;
        }
        next
    }
}
