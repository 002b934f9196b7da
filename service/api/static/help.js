/** Help texts are cut after two lines; the rest is shown while the control has the focus, under the pointer, and at a tap. */

export function unfoldHelp(form) {
  form.addEventListener("pointerover", ({ target }) => {
    const help = target.closest(".help");
    if (help) help.title = isCut(help) ? help.textContent : "";
  });
  form.addEventListener("click", ({ target }) => {
    const help = target.closest(".help");
    if (help && getSelection().isCollapsed) help.classList.toggle("whole", isCut(help));
  });
}

const isCut = (help) => help.scrollHeight > help.clientHeight;
