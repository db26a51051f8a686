document.querySelectorAll("th button").forEach(function (button) {
  button.addEventListener("click", function () {
    var head = button.closest("th"), body = head.closest("table").tBodies[0];
    var column = head.cellIndex, rising = head.getAttribute("aria-sort") !== "ascending";
    head.parentNode.querySelectorAll("th").forEach(function (other) { other.removeAttribute("aria-sort"); });
    head.setAttribute("aria-sort", rising ? "ascending" : "descending");
    Array.from(body.rows).sort(function (one, two) {
      var a = one.cells[column].dataset.value, b = two.cells[column].dataset.value;
      if (a === "" || b === "") { return (a === "") - (b === ""); }
      var order = isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
      return rising ? order : -order;
    }).forEach(function (row) { body.appendChild(row); });
  });
});
