//! Pages of lists.

use crate::StoreError;

/// A requested page of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The `next` of the previous page; `None` for the first.
    pub cursor: Option<String>,
    /// Maximum number of items.
    pub limit: u32,
}

/// A page of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paged<T> {
    /// The items.
    pub items: Vec<T>,
    /// Cursor of the next page, if there is one.
    pub next: Option<String>,
}

impl Page {
    /// Rows to query: one more than requested shows whether there is a next page.
    pub(crate) fn limit_plus_one(&self) -> i64 {
        i64::from(self.limit) + 1
    }

    /// The cursor of a list that is ordered by a number.
    pub(crate) fn number_cursor(&self, first: i64) -> Result<i64, StoreError> {
        match &self.cursor {
            Some(text) => text.parse().map_err(|_| StoreError::BadCursor(text.clone())),
            None => Ok(first),
        }
    }

    /// Drops the extra row; the cursor is the key of the last row that stays.
    pub(crate) fn cut<T>(&self, mut rows: Vec<T>, key: impl Fn(&T) -> String) -> Paged<T> {
        let more = rows.len() > self.limit as usize;
        rows.truncate(self.limit as usize);
        let next = rows.last().filter(|_| more).map(key);
        Paged { items: rows, next }
    }
}

impl<T> Paged<T> {
    /// The same page with each item converted.
    pub fn map<U>(self, turn: impl FnMut(T) -> U) -> Paged<U> {
        Paged { items: self.items.into_iter().map(turn).collect(), next: self.next }
    }

    pub(crate) fn try_map<U>(
        self,
        turn: impl FnMut(T) -> Result<U, StoreError>,
    ) -> Result<Paged<U>, StoreError> {
        let items = self.items.into_iter().map(turn).collect::<Result<_, _>>()?;
        Ok(Paged { items, next: self.next })
    }
}
