// In place of MkDocs' own, which asks a server for the index: this one works from a folder, too (file://).
(function () {
  var input = document.getElementById("mkdocs-search-query");
  var results = document.getElementById("mkdocs-search-results");
  if (!results) return; // not the page of results

  function load(name, then) {
    var script = document.createElement("script");
    script.src = base_url + "/search/" + name;
    script.onload = then;
    document.body.appendChild(script);
  }

  function element(name, text) {
    var made = document.createElement(name);
    made.textContent = text;
    return made;
  }

  function show(index, sections) {
    var words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    var found = index.query(function (query) {
      words.forEach(function (word) {
        query.term(lunr.tokenizer(word), { boost: 10 });
        query.term(word, { wildcard: lunr.Query.wildcard.TRAILING, usePipeline: false }); // while it is being typed
      });
    });
    results.textContent = words.length && !found.length ? results.getAttribute("data-no-results-text") : "";
    found.forEach(function (each) {
      var section = sections[each.ref];
      var at = Math.max(0, section.text.toLowerCase().indexOf(words[0]) - 80);
      var article = element("article", "");
      var link = article.appendChild(element("h3", "")).appendChild(element("a", section.title));
      link.href = base_url + "/" + each.ref;
      article.appendChild(element("p", section.text.substring(at, at + 200)));
      results.appendChild(article);
    });
  }

  load("lunr.js", function () {
    load("search_index.js", function () {
      var sections = {};
      var index = lunr(function () {
        this.ref("location");
        this.field("title");
        this.field("text");
        search_index.docs.forEach(function (section) {
          this.add(section);
          sections[section.location] = section;
        }, this);
      });
      input.value = new URLSearchParams(location.search).get("q") || "";
      input.addEventListener("input", function () { show(index, sections); });
      show(index, sections);
    });
  });
})();
