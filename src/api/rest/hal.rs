//! Pages and links as Spring's HAL has them, which ChatKitty's clients read.

use std::time::SystemTime;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use serde_json::{Map, Value, json};
use url::form_urlencoded;

use super::error::ApiError;
use crate::model::RawJson;

const SIZE: u32 = 20;
const SIZE_MAX: u32 = 100;
/// Beyond it there is nothing, and an offset stays a number.
const PAGE_MAX: u64 = 1 << 32;

/// What a list is asked for: `page`, `size` and `sort`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paging {
    /// From 0.
    pub page: u64,
    pub size: u32,
    /// `property,asc` or `property,desc`, as they came.
    sort: Vec<String>,
}

impl Paging {
    fn parse(query: &str) -> Result<Self, ApiError> {
        let mut paging = Self { page: 0, size: SIZE, sort: Vec::new() };
        let bad = |what: &str| ApiError::bad_request("INVALID_PAGE", what);
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "page" => {
                    let page = value.parse().ok().filter(|page| *page <= PAGE_MAX);
                    paging.page = page.ok_or_else(|| bad("page is no number of a page: the first is 0"))?;
                }
                "size" => {
                    let size = value.parse().ok().filter(|size| (1..=SIZE_MAX).contains(size));
                    paging.size = size.ok_or_else(|| bad(&format!("size must be 1 to {SIZE_MAX}")))?;
                }
                "sort" if paging.sort.len() < 8 => paging.sort.push(value.into_owned()),
                _ => {}
            }
        }
        Ok(paging)
    }

    pub fn offset(&self) -> u64 {
        self.page * u64::from(self.size)
    }

    /// Whether the last comes first. All that can be sorted by goes up together, so the first criterion decides.
    ///
    /// # Errors
    /// It asks for something else than `properties`.
    pub fn descending(&self, properties: &[&str], default: bool) -> Result<bool, ApiError> {
        let mut found = None;
        for criterion in &self.sort {
            let (property, direction) = criterion.split_once(',').unwrap_or((criterion, "asc"));
            let descending = match direction.to_ascii_lowercase().as_str() {
                "asc" => Some(false),
                "desc" => Some(true),
                _ => None,
            };
            let (true, Some(descending)) = (properties.contains(&property), descending) else {
                let known = properties.join(", ");
                let message = format!("sort must be one of {known}, and after a comma asc or desc");
                return Err(ApiError::bad_request("INVALID_SORT", message));
            };
            found.get_or_insert(descending);
        }
        Ok(found.unwrap_or(default))
    }

    /// A page of `total` items, `items` under their name.
    pub fn wrap(&self, path: &str, name: &str, items: Vec<Value>, total: u64) -> Value {
        let pages = total.div_ceil(u64::from(self.size));
        let sort: String = self
            .sort
            .iter()
            .map(|criterion| {
                format!("&sort={}", form_urlencoded::byte_serialize(criterion.as_bytes()).collect::<String>())
            })
            .collect();
        let at = |page: u64| link(&format!("{path}?page={page}&size={}{sort}", self.size));
        let mut links = Map::from_iter([("self".to_owned(), at(self.page)), ("first".to_owned(), at(0))]);
        if self.page > 0 {
            links.insert("prev".to_owned(), at((self.page - 1).min(pages.saturating_sub(1))));
        }
        if self.page + 1 < pages {
            links.insert("next".to_owned(), at(self.page + 1));
        }
        links.insert("last".to_owned(), at(pages.saturating_sub(1)));
        json!({
            "_embedded": { name: items },
            "page": { "number": self.page, "size": self.size, "totalElements": total, "totalPages": pages },
            "_links": links,
        })
    }
}

impl<S: Sync> FromRequestParts<S> for Paging {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        Self::parse(parts.uri.query().unwrap_or_default())
    }
}

/// From the root: who proxies us knows our address better than we do.
pub fn link(path: &str) -> Value {
    json!({ "href": path })
}

pub fn links<const N: usize>(named: [(&str, String); N]) -> Value {
    named.into_iter().map(|(name, path)| (name.to_owned(), link(&path))).collect::<Map<_, _>>().into()
}

pub fn time(at: SystemTime) -> Value {
    humantime::format_rfc3339_millis(at).to_string().into()
}

/// JSON that was passed through as text. What is nested too deeply to be read stays a text.
pub fn value(json: &RawJson) -> Value {
    serde_json::from_str(json.as_str()).unwrap_or_else(|_| json.as_str().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_says_where_the_others_are() {
        let paging = Paging::parse("page=1&size=2&sort=id,desc&other=x").expect("fine");
        let page = paging.wrap("/v1/x", "xs", vec![json!(3), json!(4)], 5);
        assert_eq!(page["page"], json!({ "number": 1, "size": 2, "totalElements": 5, "totalPages": 3 }));
        assert_eq!(page["_embedded"]["xs"], json!([3, 4]));
        let href = |name: &str| page["_links"][name]["href"].as_str().map(str::to_owned);
        assert_eq!(href("next").as_deref(), Some("/v1/x?page=2&size=2&sort=id%2Cdesc"));
        assert_eq!(href("prev").as_deref(), Some("/v1/x?page=0&size=2&sort=id%2Cdesc"));
        assert_eq!(href("last"), href("next"));
        let empty = Paging::parse("").expect("fine").wrap("/v1/x", "xs", Vec::new(), 0);
        assert_eq!(empty["page"]["totalPages"], 0);
        assert!(empty["_links"].get("next").is_none() && empty["_links"].get("prev").is_none());
    }

    #[test]
    fn what_is_no_page_is_refused() {
        for query in ["page=-1", "page=x", "page=99999999999", "size=0", "size=101", "size="] {
            assert!(Paging::parse(query).is_err(), "{query}");
        }
        let descending = |query: &str| Paging::parse(query).expect("fine").descending(&["id", "name"], true).ok();
        assert_eq!(descending(""), Some(true));
        assert_eq!(descending("sort=id"), Some(false));
        assert_eq!(descending("sort=name,DESC&sort=id,asc"), Some(true));
        assert_eq!(descending("sort=id,up"), None);
        assert_eq!(descending("sort=secret"), None);
    }
}
