//! Statements, each with one text, whichever database it goes to.
//!
//! Owns: connections and transactions of either database, values on their way into a statement and rows on their way out. Must
//! not know: what the statements are about.
//!
//! A `?` stands for each value, as SQLite has it. Every text keeps to what both databases understand, and to these types: integers
//! (`i64`), texts, bytes, and truths.

use std::borrow::Cow;
use std::marker::PhantomData;
use std::pin::Pin;

use sqlx::postgres::PgRow;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Error, FromRow, PgPool, Postgres, Sqlite, SqlitePool};

/// How many rows one statement writes: far from the number of values that either database takes in one.
pub(super) const ROWS_MAX: usize = 500;

/// Connections to a database.
#[derive(Clone, Debug)]
pub(super) enum Pool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

/// A transaction. Dropped, it has not happened.
#[derive(Debug)]
pub(super) enum Transaction {
    Sqlite(sqlx::Transaction<'static, Sqlite>),
    Postgres(sqlx::Transaction<'static, Postgres>),
}

/// Where a statement goes.
pub(super) enum Target<'a> {
    /// It is alone.
    Pool(&'a Pool),
    /// It belongs to others.
    Transaction(&'a mut Transaction),
}

impl Pool {
    /// Begins to change something. Writers of SQLite are one after the other from here on; those of PostgreSQL are when they have
    /// locked the timeline.
    pub(super) async fn begin_to_write(&self) -> Result<Transaction, Error> {
        // On the heap while it lasts: each future that waits for it would have its 4 KiB all the time otherwise, and there is one for
        // each host.
        match self {
            Self::Sqlite(pool) => Box::pin(pool.begin_with("BEGIN IMMEDIATE")).await.map(Transaction::Sqlite),
            // Each statement sees what was committed before it; so those behind the lock see everything.
            Self::Postgres(pool) => {
                let begin = "BEGIN ISOLATION LEVEL READ COMMITTED";
                Box::pin(pool.begin_with(begin)).await.map(Transaction::Postgres)
            }
        }
    }

    /// Begins to read one and the same state.
    pub(super) async fn begin_to_read(&self) -> Result<Transaction, Error> {
        match self {
            Self::Sqlite(pool) => Box::pin(pool.begin()).await.map(Transaction::Sqlite),
            Self::Postgres(pool) => {
                let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
                Box::pin(pool.begin_with(begin)).await.map(Transaction::Postgres)
            }
        }
    }

    /// Lets running statements finish and closes the connections.
    pub(super) async fn close(&self) {
        match self {
            Self::Sqlite(pool) => pool.close().await,
            Self::Postgres(pool) => pool.close().await,
        }
    }
}

impl Transaction {
    /// Makes it durable.
    pub(super) async fn commit(self) -> Result<(), Error> {
        match self {
            Self::Sqlite(transaction) => transaction.commit().await,
            Self::Postgres(transaction) => transaction.commit().await,
        }
    }
}

impl<'a> From<&'a Pool> for Target<'a> {
    fn from(pool: &'a Pool) -> Self {
        Self::Pool(pool)
    }
}

impl<'a> From<&'a mut Transaction> for Target<'a> {
    fn from(transaction: &'a mut Transaction) -> Self {
        Self::Transaction(transaction)
    }
}

/// A value on its way into a statement. What is not there has a type all the same, which PostgreSQL asks for.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Integer(Option<i64>),
    Text(Option<String>),
    Bytes(Option<Vec<u8>>),
    Truth(Option<bool>),
}

/// Implements `From` for what can be bound, and for what may be absent.
macro_rules! values {
    ($($variant:ident: $($from:ty),*;)*) => {
        $($(
            impl From<$from> for Value {
                fn from(value: $from) -> Self {
                    Self::$variant(Some(value.into()))
                }
            }

            impl From<Option<$from>> for Value {
                fn from(value: Option<$from>) -> Self {
                    Self::$variant(value.map(Into::into))
                }
            }
        )*)*
    };
}

values! {
    Integer: i64, u32;
    Text: &str, &String, String;
    Bytes: &[u8], Vec<u8>;
    Truth: bool;
}

/// What becomes of the rows of a statement.
pub(super) trait Output {
    /// What one row becomes.
    type Item: Send;

    fn from_sqlite(row: &SqliteRow) -> Result<Self::Item, Error>;

    fn from_postgres(row: &PgRow) -> Result<Self::Item, Error>;
}

/// Each row becomes a tuple or a struct.
pub(super) struct Rows<T>(PhantomData<T>);

/// Of each row only the first column matters.
pub(super) struct Scalars<T>(PhantomData<T>);

impl<T> Output for Rows<T>
where
    T: Send + for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow>,
{
    type Item = T;

    fn from_sqlite(row: &SqliteRow) -> Result<T, Error> {
        T::from_row(row)
    }

    fn from_postgres(row: &PgRow) -> Result<T, Error> {
        T::from_row(row)
    }
}

impl<T> Output for Scalars<T>
where
    T: Send,
    (T,): for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow>,
{
    type Item = T;

    fn from_sqlite(row: &SqliteRow) -> Result<T, Error> {
        <(T,)>::from_row(row).map(|(first,)| first)
    }

    fn from_postgres(row: &PgRow) -> Result<T, Error> {
        <(T,)>::from_row(row).map(|(first,)| first)
    }
}

/// A statement with its values. `O` says what becomes of its rows; `()`: there are none.
pub(super) struct Query<O> {
    text: Cow<'static, str>,
    values: Vec<Value>,
    /// Whether the text is always the same, so that it is worth while to keep it prepared.
    is_fixed: bool,
    output: PhantomData<fn() -> O>,
}

/// A statement without rows.
pub(super) fn query(text: &'static str) -> Query<()> {
    Query::new(text)
}

/// A statement whose rows become tuples or structs.
pub(super) fn query_as<T>(text: &'static str) -> Query<Rows<T>> {
    Query::new(text)
}

/// A statement of whose rows the first column matters.
pub(super) fn query_scalar<T>(text: &'static str) -> Query<Scalars<T>> {
    Query::new(text)
}

impl<O> Query<O> {
    fn new(text: &'static str) -> Self {
        Self { text: Cow::Borrowed(text), values: Vec::new(), is_fixed: true, output: PhantomData }
    }

    /// The value of the next `?`.
    pub(super) fn bind(mut self, value: impl Into<Value>) -> Self {
        self.values.push(value.into());
        self
    }

    /// More text.
    pub(super) fn push(&mut self, text: &'static str) -> &mut Self {
        self.text.to_mut().push_str(text);
        self
    }

    /// A `?` with its value.
    pub(super) fn push_bind(&mut self, value: impl Into<Value>) -> &mut Self {
        self.values.push(value.into());
        self.push("?")
    }

    /// `(?, ?, …)` with these values. The list that follows an `IN` must not be empty.
    pub(super) fn push_list(&mut self, values: impl IntoIterator<Item: Into<Value>>) -> &mut Self {
        let count = self.push_values(values);
        // A list of one is what most are: that text is worth keeping, and those of all the other lengths are too many.
        self.is_fixed &= count == 1;
        self
    }

    /// `(?, ?, …), (?, ?, …), …` with the values of these rows, of which there is one at least.
    pub(super) fn push_rows(
        &mut self,
        rows: impl IntoIterator<Item = impl IntoIterator<Item: Into<Value>>>,
    ) -> &mut Self {
        let mut count = 0;
        for row in rows {
            if count > 0 {
                self.push(", ");
            }
            self.push_values(row);
            count += 1;
        }
        self.is_fixed &= count == 1;
        self
    }

    /// Returns how many there were.
    fn push_values(&mut self, values: impl IntoIterator<Item: Into<Value>>) -> usize {
        self.push("(");
        let mut count = 0;
        for value in values {
            if count > 0 {
                self.push(", ");
            }
            self.push_bind(value);
            count += 1;
        }
        self.push(")");
        count
    }
}

/// The values, put into a query of either database.
macro_rules! bound {
    ($self:expr, $text:expr) => {{
        let query = sqlx::query(AssertSqlSafe($text)).persistent($self.is_fixed);
        $self.values.into_iter().fold(query, |query, value| match value {
            Value::Integer(integer) => query.bind(integer),
            Value::Text(text) => query.bind(text),
            Value::Bytes(bytes) => query.bind(bytes),
            Value::Truth(truth) => query.bind(truth),
        })
    }};
}

/// What a statement comes to. It is boxed, so that it is compiled once and not into the future of each caller.
type Outcome<'a, T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>;

impl Query<()> {
    /// Returns how many rows it changed.
    pub(super) fn execute<'a>(self, target: impl Into<Target<'a>>) -> Outcome<'a, u64> {
        let target = target.into();
        Box::pin(async move {
            Ok(match target {
                Target::Pool(Pool::Sqlite(pool)) => {
                    bound!(self, self.text).execute(pool).await?.rows_affected()
                }
                Target::Transaction(Transaction::Sqlite(sql)) => {
                    bound!(self, self.text).execute(&mut **sql).await?.rows_affected()
                }
                Target::Pool(Pool::Postgres(pool)) => {
                    bound!(self, numbered(&self.text)).execute(pool).await?.rows_affected()
                }
                Target::Transaction(Transaction::Postgres(sql)) => {
                    bound!(self, numbered(&self.text)).execute(&mut **sql).await?.rows_affected()
                }
            })
        })
    }
}

impl<O: Output> Query<O> {
    /// All rows.
    pub(super) fn fetch_all<'a>(self, target: impl Into<Target<'a>>) -> Outcome<'a, Vec<O::Item>>
    where
        O: 'a,
    {
        let target = target.into();
        Box::pin(async move {
            match target {
                Target::Pool(Pool::Sqlite(pool)) => {
                    let rows = bound!(self, self.text).fetch_all(pool).await?;
                    rows.iter().map(O::from_sqlite).collect()
                }
                Target::Transaction(Transaction::Sqlite(sql)) => {
                    let rows = bound!(self, self.text).fetch_all(&mut **sql).await?;
                    rows.iter().map(O::from_sqlite).collect()
                }
                Target::Pool(Pool::Postgres(pool)) => {
                    let rows = bound!(self, numbered(&self.text)).fetch_all(pool).await?;
                    rows.iter().map(O::from_postgres).collect()
                }
                Target::Transaction(Transaction::Postgres(sql)) => {
                    let rows = bound!(self, numbered(&self.text)).fetch_all(&mut **sql).await?;
                    rows.iter().map(O::from_postgres).collect()
                }
            }
        })
    }

    /// The first row, if there is one. The statement is to be one that has one at most.
    pub(super) fn fetch_optional<'a>(self, target: impl Into<Target<'a>>) -> Outcome<'a, Option<O::Item>>
    where
        O: 'a,
    {
        let rows = self.fetch_all(target);
        Box::pin(async move { Ok(rows.await?.into_iter().next()) })
    }

    /// The one row.
    pub(super) fn fetch_one<'a>(self, target: impl Into<Target<'a>>) -> Outcome<'a, O::Item>
    where
        O: 'a,
    {
        let row = self.fetch_optional(target);
        Box::pin(async move { row.await?.ok_or(Error::RowNotFound) })
    }
}

/// The text as PostgreSQL has it: `$1`, `$2`, … for each `?` that is not inside quotes.
fn numbered(text: &str) -> String {
    let mut numbered = String::with_capacity(text.len() + 16);
    let (mut quote, mut count) = (None, 0_u32);
    for char in text.chars() {
        match (char, quote) {
            ('?', None) => {
                count += 1;
                numbered += &format!("${count}");
                continue;
            }
            ('\'' | '"', None) => quote = Some(char),
            // A doubled quote ends and begins again.
            (_, Some(open)) if open == char => quote = None,
            _ => {}
        }
        numbered.push(char);
    }
    numbered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_numbered_outside_quotes() {
        for (text, expected) in [
            ("SELECT 1", "SELECT 1"),
            ("SELECT ?, ? FROM a WHERE b = ?", "SELECT $1, $2 FROM a WHERE b = $3"),
            ("SELECT '?', ? FROM \"?\"", "SELECT '?', $1 FROM \"?\""),
            ("SELECT 'it''s ?' || ?", "SELECT 'it''s ?' || $1"),
            ("SELECT '\"?' || ?", "SELECT '\"?' || $1"),
        ] {
            assert_eq!(numbered(text), expected);
        }
    }

    #[test]
    fn lists_have_a_place_for_each_value() {
        let mut query = query("DELETE FROM a WHERE b IN ");
        query.push_list(["x", "y"]).push(" AND c = ").push_bind(7_i64);
        assert_eq!(query.text, "DELETE FROM a WHERE b IN (?, ?) AND c = ?");
        assert_eq!((query.values.len(), query.is_fixed), (3, false));
        let mut query = super::query("DELETE FROM a WHERE b IN ");
        query.push_list(["x"]);
        assert_eq!((query.text.as_ref(), query.is_fixed), ("DELETE FROM a WHERE b IN (?)", true));
    }

    #[test]
    fn rows_have_a_place_for_each_value() {
        let insert = |count: i64| {
            let mut query = query("INSERT INTO a (b, c) VALUES ");
            query.push_rows((0..count).map(|row| [Value::from(row), "x".into()]));
            (query.text.into_owned(), query.values.len(), query.is_fixed)
        };
        assert_eq!(insert(1), ("INSERT INTO a (b, c) VALUES (?, ?)".to_owned(), 2, true));
        assert_eq!(insert(2), ("INSERT INTO a (b, c) VALUES (?, ?), (?, ?)".to_owned(), 4, false));
    }
}
