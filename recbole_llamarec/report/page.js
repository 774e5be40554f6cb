"use strict";
// The search box over users: all words must stand in a user's line or in its titles.
const users = [...document.querySelectorAll("details.user")];
const texts = users.map((user) =>
  [...user.querySelectorAll("summary, li, .title")].map((part) => part.textContent).join(" ").toLowerCase());
const box = document.getElementById("search");
const count = document.getElementById("search-count");

function search() {
  const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  users.forEach((user, i) => {
    user.hidden = !words.every((word) => texts[i].includes(word));
    shown += user.hidden ? 0 : 1;
  });
  count.textContent = `${shown} of ${users.length}`;
}

box.addEventListener("input", search);
document.getElementById("search-form").hidden = false;
search();
